"""Runs recipes one after the other, and ends with a table of the time each took.

`python3 -m bootstrap.stages RUNNER RECIPE...`: every stage runs, so that one look shows all that is
wrong; the exit code is 1 if any stage failed. An interrupt ends it there.
"""

from __future__ import annotations

import subprocess
import sys
import time

from . import cache


def main(runner: str, recipes: list) -> int:
    rows = []
    for recipe in recipes:
        print(f"\n== {recipe}", flush=True)
        start = time.monotonic()
        words = [runner, "--justfile", str(cache.CHECKOUT / "justfile"), "--no-deps", recipe]
        status = subprocess.run(words, cwd=cache.CHECKOUT).returncode
        rows.append((recipe, time.monotonic() - start, status))
    print("\n" + table(rows), flush=True)
    return 1 if any(status for _, _, status in rows) else 0


def table(rows: list) -> str:
    total = sum(seconds for _, seconds, _ in rows)
    lines = [f"{'stage':14} {'seconds':>8} {'share':>6}"]
    for recipe, seconds, status in rows:
        failed = f"  failed ({status})" if status else ""
        lines.append(f"{recipe:14} {seconds:8.1f} {seconds / max(total, 0.001):6.0%}{failed}")
    return "\n".join([*lines, f"{'total':14} {total:8.1f}"])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except KeyboardInterrupt:
        sys.exit(130)
