"""What the set-up says: progress lines, refusals, and how programs are run under them.

All of it goes to standard error; standard output carries results only (a path). On a terminal a
running step rewrites its line each second; elsewhere it says once what it does and once how long
that took.
"""

from __future__ import annotations

import enum
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field


class Exit(enum.IntEnum):
    """Exit codes of the set-up. 0 is success; Python itself uses 1 and 2."""

    BY_HAND = 10  # no apt on this machine: the list of what to install was printed
    NETWORK = 11
    QEMU_OLD = 12
    CORE_SOURCES = 13
    DISK_FULL = 14
    RUSTUP = 15
    RUNNER = 16  # no command runner, and nothing to install one with
    NOT_ROOT = 17
    APT = 18  # apt answered, and said no
    PYTHON = 19  # said by `just` and by __init__.py, before this file can be read
    BOOK = 20  # mdBook does not compile
    FUZZER = 21  # cargo-fuzz does not compile
    INTERRUPTED = 130


@dataclass
class Refusal(Exception):
    """Why the set-up stops, as three things a reader needs. Each is a sentence or a list of them."""

    code: Exit
    wanted: str
    looked: str | list
    do: str | list
    log: str = ""

    def __str__(self) -> str:
        lines = []
        for label, text in (("wanted", self.wanted), ("looked", self.looked), ("do", self.do)):
            for number, line in enumerate([text] if isinstance(text, str) else text):
                lines.append(f"  {label + ':' if number == 0 else '':8} {line}")
        if self.log:
            lines.append("  the last lines it printed:")
            lines += [f"  | {line}" for line in self.log.strip().splitlines()[-6:]]
        return "\n".join(lines)


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


@dataclass
class Done:
    """A program that has ended."""

    status: int
    output: str  # standard output and standard error, in the order they came
    seconds: float

    NO_NETWORK = (
        "could not resolve",
        "temporary failure",
        "failed to establish a new connection",
        "unable to connect",
        "cannot initiate the connection",
        "could not connect",
        "connection timed out",
        "connection refused",
        "network is unreachable",
        "error sending request",
        "dns error",
        "could not download",
        "failed to download",
    )
    NO_SPACE = ("no space left on device", "enough free space", "disk quota exceeded")

    def ok(self) -> bool:
        return self.status == 0

    def no_network(self) -> bool:
        return any(sign in self.output.lower() for sign in self.NO_NETWORK)

    def no_space(self) -> bool:
        return any(sign in self.output.lower() for sign in self.NO_SPACE)

    def reason(self) -> str:
        """The failure in one clause."""
        if self.no_network():
            return "no answer from the network"
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return f"it ended with code {self.status}" + (f": {lines[-1]}" if lines else "")


def ask(argv: list) -> str | None:
    """Standard output of a program that only answers a question; None when it fails."""
    try:
        answer = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def run(argv: list, doing: str, env: dict | None = None, cwd=None, patient: bool = False) -> Done:
    """Runs a program in a process group of its own and shows that it lives.

    An interrupt ends the whole group before it travels on. `patient` is for a package manager in
    the middle of its work: it is asked to stop and then waited for.
    """
    start = time.monotonic()
    line = Line(doing)
    with tempfile.TemporaryFile(dir=cwd) as log:
        child = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        try:
            while True:
                try:
                    child.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    line.tick(time.monotonic() - start)
        except KeyboardInterrupt:
            line.end("interrupted")
            _stop(child, patient)
            raise
        seconds = time.monotonic() - start
        log.seek(0)
        done = Done(child.returncode, log.read().decode(errors="replace"), seconds)
    line.end(f"{seconds:.0f} s" if done.ok() else f"failed after {seconds:.0f} s")
    return done


def _stop(child: subprocess.Popen, patient: bool) -> None:
    try:
        os.killpg(child.pid, signal.SIGINT if patient else signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        pass
    try:
        child.wait(timeout=None if patient else 5)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@dataclass
class Line:
    """One step's progress: what, then how long."""

    doing: str
    terminal: bool = field(default_factory=lambda: sys.stderr.isatty())

    def __post_init__(self) -> None:
        print(f"setup: {self.doing} ...", end="", file=sys.stderr, flush=True)

    def tick(self, seconds: float) -> None:
        if self.terminal:
            print(f"\rsetup: {self.doing} ... {seconds:.0f} s", end="", file=sys.stderr, flush=True)

    def end(self, outcome: str) -> None:
        start = f"\rsetup: {self.doing} ..." if self.terminal else ""
        print(f"{start} {outcome}", file=sys.stderr, flush=True)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def arm_signals() -> None:
    """A closed terminal and a polite kill are handled like Ctrl-C: undo, then leave."""

    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
