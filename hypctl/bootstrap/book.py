"""mdBook, which renders `docs/`: wanted by `./just docs` alone, so not part of `ensure`.

One on the PATH if it is new enough, else compiled into the cache: without its web server, and
unoptimised, which is quick enough for a book of this size and takes a minute instead of four.
"""

from __future__ import annotations

import shutil
import time

from . import cache
from .report import Exit, Refusal, ask, run
from .system import dotted, numbers

VERSION = "0.5.4"
LOWEST = (0, 5)
HOME = cache.HERE / "mdbook"
WANTED = f"mdBook {dotted(LOWEST)} or newer, to render the book."


class Book:
    name = "mdbook"

    def holds(self, record: dict) -> bool:
        known = (str(HOME / "bin/mdbook"), shutil.which("mdbook"))
        return record["path"] in known and cache.unchanged(record["mark"])

    def find(self) -> dict | None:
        for path in (str(HOME / "bin/mdbook"), shutil.which("mdbook")):
            version = numbers((ask([path, "--version"]) or "").replace(" v", " ")) if path else ()
            if version >= LOWEST:
                shown = {"path": path, "version": dotted(version), "how": "found"}
                return {**shown, "mark": cache.mark(path)}
        return None

    def get(self) -> dict:
        cache.require(600_000_000, "compiling mdBook")
        with cache.workshop() as place:
            command = ["cargo", "install", "mdbook", "--version", VERSION, "--locked", "--debug"]
            command += ["--no-default-features", "--root", place / "made", "--target-dir", place / "t"]
            done = run(command, f"compiling mdBook {VERSION} (about a minute)")
            if done.no_space():
                raise cache.disk_full("600 MB for compiling mdBook")
            if not done.ok():
                code = Exit.NETWORK if done.no_network() else Exit.BOOK
                looked = f"On the PATH and in {HOME}; then `cargo install`: {done.reason()}."
                raise Refusal(code, WANTED, looked, "Install it by hand, and run this again.", done.output)
            cache.publish(place / "made", HOME)
        record = self.find()
        if record is None:
            looked = f"`cargo install` brought no program that runs to {HOME}."
            raise Refusal(Exit.BOOK, WANTED, looked, "Install it by hand, and run this again.")
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        return {**record, "how": "cargo install, into the cache", "when": when}
