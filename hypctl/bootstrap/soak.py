"""Long runs of what searches at random: `./just soak [MINUTES]`.

Half of the time goes to random programs on the real stage 2, half to the protocols under shuttle with fresh
seeds. Each search is told how long by STAGE2_SOAK_SECONDS, and prints what repeats a finding. Both run; the
exit code is 1 if one found something. (loom is not here: it is exhaustive within its bounds, and runs whole
in `./just test-models`.)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from . import cache, report
from .stages import table

PROGRAMS = ["cargo", "test", "--release", "--quiet", "-p", "programs", "--test", "programs", "a_program"]
MODELS = ["cargo", "test", "--quiet", "--profile", "models", "-p", "protocol-models"]
SHORTEST = 2  # seconds: in less, a test does not see every outcome that it asks for
QUIETLY = ["--", "--nocapture", "--test-threads", "1"]


class Search:
    """One test binary. `turns`: how often each of its tests spends the time that it is given."""

    def __init__(self, name: str, words: list, share: float, turns: int, flags: str = ""):
        self.name, self.words, self.share, self.turns = name, words, share, turns
        self.env = {**os.environ, **({"RUSTFLAGS": flags} if flags else {})}

    def tests(self) -> int:
        """How many tests there are; builds them. 0 when they do not build."""
        listed = subprocess.run([*self.words, "--", "--list"], cwd=cache.CHECKOUT, env=self.env, stdout=subprocess.PIPE, text=True)
        return listed.stdout.count(": test") if listed.returncode == 0 else 0

    def run(self, seconds: float) -> tuple:
        tests = self.tests()
        if tests == 0:
            print(f"soak: {self.name} cannot be built", file=sys.stderr)
            return self.name, 0.0, 1
        each = max(SHORTEST, round(seconds * self.share / tests / self.turns))
        times = f" {self.turns} times" if self.turns > 1 else ""
        print(f"\n== {self.name}: {tests} tests, {each} s each{times}", flush=True)
        start = time.monotonic()
        env = {**self.env, "STAGE2_SOAK_SECONDS": str(each)}
        status = subprocess.run([*self.words, *QUIETLY], cwd=cache.CHECKOUT, env=env).returncode
        return self.name, time.monotonic() - start, status


def searches() -> list:
    products = Path(os.environ.get("CARGO_TARGET_DIR") or cache.CHECKOUT / "target")
    return [
        Search("programs", PROGRAMS, 0.5, 1),
        Search("shuttle", [*MODELS, "--target-dir", products / "shuttle", "--test", "shuttle"], 0.5, 2, "--cfg shuttle"),
    ]


def main(words: list) -> int:
    parser = argparse.ArgumentParser(prog="./just soak", description="Long runs of what searches at random.")
    parser.add_argument("minutes", nargs="?", type=float, default=10, metavar="MINUTES", help="in all, building not counted (default: 10)")
    minutes = parser.parse_args(words).minutes
    if not minutes > 0:
        parser.error("MINUTES is more than 0")
    rows = [search.run(minutes * 60) for search in searches()]
    print("\n" + table(rows), flush=True)
    return 1 if any(status for _, _, status in rows) else 0


if __name__ == "__main__":
    report.arm_signals()
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
