"""Runs the fuzz targets, one after the other: `./just fuzz [TARGET...] [--seconds N]`.

The saved corpus is where each run starts; what a run finds new goes to `target/fuzz/corpus/TARGET`, so that
the checkout stays as it is. A finding ends the run of its target: the input's path and the command that
replays it are printed, the other targets still run, and the exit code is 1.

With `--save` the saved corpus is replaced by the smallest one that reaches what is known to be reached.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import cache, report
from .__main__ import ensure, refuse
from .fuzzer import PROGRAM, Compiler, Fuzzer

TARGETS = ("programs", "descriptors", "device_trees", "syndromes", "interrupts")
"""Longest input in bytes: a device tree is larger than anything else."""
LONGEST = {"programs": 600, "descriptors": 1024, "device_trees": 12288, "syndromes": 2048, "interrupts": 2048}
HOME = cache.CHECKOUT / "tests/programs"
PULSE = re.compile(r"#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)")


@dataclass
class Outcome:
    target: str
    seconds: float
    runs: int
    coverage: int
    features: int
    inputs: int
    status: int


@dataclass
class Progress:
    """On a terminal one line that changes each second, elsewhere a line each minute."""

    target: str
    seconds: int
    start: float = field(default_factory=time.monotonic)
    shown: float = 0.0
    terminal: bool = field(default_factory=lambda: sys.stdout.isatty())

    def line(self, counts: tuple) -> str:
        runs, coverage, features, _ = counts
        took = time.monotonic() - self.start
        return f"fuzz: {self.target}: {took:.0f} of {self.seconds} s, {runs} runs, coverage {coverage}, features {features}"

    def show(self, counts: tuple) -> None:
        now = time.monotonic()
        if now - self.shown >= (1 if self.terminal else 60):
            self.shown = now
            print(("\r" if self.terminal else "") + self.line(counts), end="" if self.terminal else "\n", flush=True)

    def end(self, outcome: str, counts: tuple) -> None:
        print(("\r" if self.terminal else "") + f"{self.line(counts)}: {outcome}", flush=True)


def main(words: list) -> int:
    parser = argparse.ArgumentParser(
        prog="./just fuzz", description="Run the fuzz targets, one after the other."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all of them if none")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long each runs (default: 60)")
    parser.add_argument("--replay", metavar="FILE", help="run one target on one input")
    parser.add_argument("--save", action="store_true", help="afterwards, minimise what was found into the saved corpus")
    asked = parser.parse_args(words)
    unknown = [target for target in asked.targets if target not in TARGETS]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if asked.seconds < 1:
        parser.error("--seconds takes 1 or more")
    if asked.replay and len(asked.targets) != 1:
        parser.error("--replay takes one target")
    if asked.replay and not Path(asked.replay).is_file():
        parser.error(f"no file {asked.replay}")
    ensure([Compiler(), Fuzzer()])
    if asked.replay:
        binary = build(asked.targets)
        return 1 if binary is None else replay(binary[asked.targets[0]], asked.replay)
    targets = asked.targets or list(TARGETS)
    binary = build(targets)
    if binary is None:
        return 1
    outcomes = [fuzz(target, binary[target], asked.seconds) for target in targets]
    print("\n" + table(outcomes), flush=True)
    if asked.save:
        for target in targets:
            save(target, binary[target])
    return 1 if any(outcome.status for outcome in outcomes) else 0


def products() -> Path:
    return Path(os.environ.get("CARGO_TARGET_DIR") or cache.CHECKOUT / "target") / "fuzz"


def build(targets: list) -> dict | None:
    """Builds the targets; their binaries by name."""
    print("fuzz: building (the first time takes about a minute)", flush=True)
    for target in targets:
        # Debug assertions and overflow checks are on; the code under test has next to no `unsafe`, and
        # sanitizers would cost half of the speed.
        words = [PROGRAM, "fuzz", "build", "--sanitizer", "none", "--fuzz-dir", "fuzz", target]
        env = {**os.environ, "CARGO_TARGET_DIR": str(products())}
        if subprocess.run(words, cwd=HOME, env=env).returncode != 0:
            print(f"fuzz: {target} cannot be built", file=sys.stderr)
            return None
    found = {target: list(products().glob(f"*/release/{target}")) for target in targets}
    return {target: paths[0] for target, paths in found.items()}


def replay(binary: Path, file: str) -> int:
    status = subprocess.run([binary, "-timeout=60", file]).returncode
    print(f"fuzz: {file}: {'nothing is found' if status == 0 else 'a finding'}", flush=True)
    return 1 if status else 0


def fuzz(target: str, binary: Path, seconds: int) -> Outcome:
    """One target for a while. Shows how far it is; a finding is shown whole."""
    work, found = products() / "corpus" / target, products() / "findings" / target
    work.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    words = [binary, f"-max_total_time={seconds}", f"-max_len={LONGEST[target]}", "-timeout=30"]
    words += ["-len_control=20", f"-artifact_prefix={found}/", work, HOME / "corpus" / target]
    start, counts, log = time.monotonic(), (0, 0, 0, 0), []
    progress = Progress(target, seconds)
    child = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace")
    try:
        for text in child.stderr:
            pulse = PULSE.match(text)
            if pulse is None:
                log = [*log, text][-400:]
                continue
            counts = tuple(map(int, pulse.groups()))
            progress.show(counts)
        status = child.wait()
    finally:
        # An interrupt ends what was started, and only that.
        if child.poll() is None:
            child.terminate()
            child.wait()
    took = time.monotonic() - start
    runs, coverage, features, inputs = counts
    progress.end("nothing is found" if status == 0 else "a finding", counts)
    if status != 0:
        tell(target, log)
    return Outcome(target, took, runs, coverage, features, inputs, status)


def tell(target: str, log: list) -> None:
    text = "".join(log)
    panic = re.search(r"thread .* panicked at .*?(?=stack backtrace|note: |==\d+==)", text, re.DOTALL)
    print(panic[0].strip() if panic else text, file=sys.stderr)
    unit = re.search(r"Test unit written to (\S+)", text)
    if unit:
        print(f"fuzz: the input that found it: {unit[1]}", file=sys.stderr)
        print(f"fuzz: to see it again: ./just fuzz {target} --replay {unit[1]}", file=sys.stderr)
        print(f"fuzz: to keep it: copy it to tests/programs/corpus/{target}/", file=sys.stderr)


def save(target: str, binary: Path) -> None:
    """Replaces the saved corpus by the smallest inputs that reach every edge that is reached."""
    saved, fresh = HOME / "corpus" / target, products() / "saved" / target
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    words = [binary, "-merge=1", "-use_counters=0", f"-max_len={LONGEST[target]}", "-timeout=30"]
    done = subprocess.run([*words, fresh, saved, products() / "corpus" / target], capture_output=True)
    kept = sorted(fresh.iterdir())
    if done.returncode != 0 or not kept:
        print(f"fuzz: the corpus of {target} could not be minimised; it is as it was", file=sys.stderr)
        return
    # What somebody named by hand stays: a regression is not measured by its coverage.
    for file in saved.iterdir():
        if re.fullmatch(r"[0-9a-f]{40}", file.name):
            file.unlink()
    for file in kept:
        shutil.copy(file, saved / file.name)
    size = sum(file.stat().st_size for file in kept)
    print(f"fuzz: {target}: {len(kept)} inputs saved, {size} bytes", flush=True)


def table(outcomes: list) -> str:
    lines = [f"{'target':14} {'seconds':>8} {'runs':>10} {'coverage':>9} {'features':>9} {'inputs':>7}"]
    for o in outcomes:
        note = "  a finding" if o.status else ""
        lines.append(f"{o.target:14} {o.seconds:8.0f} {o.runs:10} {o.coverage:9} {o.features:9} {o.inputs:7}{note}")
    return "\n".join(lines)


if __name__ == "__main__":
    report.arm_signals()
    try:
        sys.exit(main(sys.argv[1:]))
    except report.Refusal as refusal:
        sys.exit(refuse(refusal))
    except KeyboardInterrupt:
        sys.exit(130)
