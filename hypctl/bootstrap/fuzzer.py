"""cargo-fuzz and the C++ compiler that libFuzzer needs: wanted by `./just fuzz` alone, so not part of `ensure`.

cargo-fuzz is compiled into the cache. Not with the lock file that its package carries: that pins a
crate which a current nightly compiler refuses.
"""

from __future__ import annotations

import shutil
import time

from . import aptget, byhand, cache
from .report import Exit, Refusal, ask, run
from .system import CHANNEL, dotted, found_after, numbers

VERSION = "0.13.1"
LOWEST = (0, 13)
HOME = cache.HERE / "cargo-fuzz"
PROGRAM = HOME / "bin/cargo-fuzz"
WANTED = f"cargo-fuzz {dotted(LOWEST)} or newer, to run the fuzz targets."


class Compiler:
    name = "c++"
    wanted = "A C++ compiler, `c++`, to build libFuzzer."

    def holds(self, record: dict) -> bool:
        return record["path"] == shutil.which("c++") and cache.unchanged(record["mark"])

    def find(self) -> dict | None:
        path = shutil.which("c++")
        return path and {"path": path, "how": "found", "mark": cache.mark(path)}

    def get(self) -> dict:
        byhand.needs_apt(self.wanted, CHANNEL)
        view = aptget.View("system", self.wanted, extra=())
        offer = view.candidates("g++")
        if not offer:
            raise view.missing("g++")
        view.install(["g++"], offer[0][1])
        return found_after(self, f"apt, from {offer[0][1]}")


class Fuzzer:
    name = "cargo-fuzz"

    def holds(self, record: dict) -> bool:
        return record["path"] == str(PROGRAM) and cache.unchanged(record["mark"])

    def find(self) -> dict | None:
        version = numbers(ask([str(PROGRAM), "--version"]) or "")
        if version < LOWEST:
            return None
        shown = {"path": str(PROGRAM), "version": dotted(version), "how": "found"}
        return {**shown, "mark": cache.mark(PROGRAM)}

    def get(self) -> dict:
        cache.require(400_000_000, "compiling cargo-fuzz")
        with cache.workshop() as place:
            command = ["cargo", "install", "cargo-fuzz", "--version", VERSION, "--debug"]
            command += ["--root", place / "made", "--target-dir", place / "t"]
            done = run(command, f"compiling cargo-fuzz {VERSION} (about half a minute)")
            if done.no_space():
                raise cache.disk_full("400 MB for compiling cargo-fuzz")
            if not done.ok():
                code = Exit.NETWORK if done.no_network() else Exit.FUZZER
                looked = f"In {HOME}; then `cargo install`: {done.reason()}."
                do = f"See why cargo cannot build it, and run this again: nothing but {HOME} is used."
                raise Refusal(code, WANTED, looked, do, done.output)
            cache.publish(place / "made", HOME)
        record = self.find()
        if record is None:
            looked = f"`cargo install` brought no program that runs to {HOME}."
            raise Refusal(Exit.FUZZER, WANTED, looked, "Run this again.")
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        return {**record, "how": "cargo install, into the cache", "when": when}
