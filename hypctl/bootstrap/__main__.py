"""The command line: `python3 -m bootstrap ensure | runner | book | fuzzer | fetch GUEST`.

    ensure          all parts that building and testing need
    runner          the command runner only; prints its path
    book            mdBook; prints its path
    fuzzer          cargo-fuzz and a C++ compiler; prints the path of cargo-fuzz
    fetch GUEST     a guest from the distribution (u-boot); prints its path
"""

from __future__ import annotations

import argparse
import errno
import sys

from . import cache, fetch, report
from .book import Book
from .fuzzer import Compiler, Fuzzer
from .report import Exit, Refusal
from .runner import Runner
from .system import Linker, Qemu
from .toolchain import Rustup, Toolchain

PARTS = [Rustup(), Linker(), Qemu(), Toolchain()]


def ensure(parts: list) -> dict:
    """Brings every part in; returns the records."""
    records = cache.records()
    if not all(holds(part, records) for part in parts):
        with cache.lock():
            for part in parts:
                if not holds(part, cache.records()):
                    cache.note(part.name, part.find() or part.get())
        records = cache.records()
    return records


def holds(part, records: dict) -> bool:
    # An illegible record is as good as none.
    try:
        return part.holds(records.get(part.name, {}))
    except (KeyError, TypeError, AttributeError):
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="bootstrap", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ensure", help="bring in all that building and testing need")
    commands.add_parser("runner", help="bring in the command runner; print its path")
    commands.add_parser("book", help="bring in mdBook; print its path")
    commands.add_parser("fuzzer", help="bring in cargo-fuzz; print its path")
    guest = commands.add_parser("fetch", help="bring in a guest; print its path")
    guest.add_argument("guest", choices=sorted(fetch.GUESTS))
    arguments = parser.parse_args()
    report.arm_signals()
    try:
        if arguments.command == "ensure":
            ensure(PARTS)
        elif arguments.command == "runner":
            print(ensure([Runner()])["runner"]["path"])
        elif arguments.command == "book":
            print(ensure([Book()])["mdbook"]["path"])
        elif arguments.command == "fuzzer":
            print(ensure([Compiler(), Fuzzer()])["cargo-fuzz"]["path"])
        else:
            print(fetch.fetch(arguments.guest))
    except Refusal as refusal:
        return refuse(refusal)
    except KeyboardInterrupt:
        report.say("interrupted; nothing was left half done")
        return Exit.INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return refuse(cache.disk_full("the set-up's files"))
    return 0


def refuse(refusal: Refusal) -> int:
    report.say("cannot go on")
    print(refusal, file=sys.stderr)
    return refusal.code


if __name__ == "__main__":
    sys.exit(main())
