"""The command runner `just`: one on the PATH if it is new enough, else a wheel in the cache.

A machine without pip gets pip itself as a wheel from Debian's `python3-pip-whl`, unpacked and used
in place, never installed.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from . import aptget, cache
from .report import Done, Exit, Refusal, ask, run, say
from .system import dotted, numbers

VERSION = "1.59.0"
LOWEST = (1, 31)
HOME = cache.HERE / "runner"
WANTED = f"The command runner `just` {dotted(LOWEST)} or newer."


class Runner:
    name = "runner"

    def holds(self, record: dict) -> bool:
        wanted = record["path"] in (str(HOME / "bin/just"), on_path())
        return wanted and cache.unchanged(record["mark"])

    def find(self) -> dict | None:
        for path in (str(HOME / "bin/just"), on_path()):
            version = numbers(ask([path, "--version"]) or "") if path else ()
            if version >= LOWEST:
                return note(path, version, "found")
        return None

    def get(self) -> dict:
        cache.require(20_000_000, "the command runner")
        with cache.workshop() as place:
            done = install(pip(place), place)
            if not done.ok():
                raise refuse(done)
            cache.publish(place / "made", HOME)
        record = self.find()
        if record is None:
            raise refuse(done)
        return {**record, "how": "pip, into the cache"}


def note(path: str, version: tuple, how: str) -> dict:
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    shown = {"path": path, "version": dotted(version), "how": how, "when": when}
    return {**shown, "mark": cache.mark(path)}


def on_path() -> str | None:
    """A `just` that is not this project's own wrapper."""
    path = shutil.which("just")
    ours = path and os.path.realpath(path) == str(cache.CHECKOUT / "just")
    return None if ours else path


def install(pip: list, place: Path) -> Done:
    words = ["install", "--target", place / "made", "--no-deps", "--only-binary", ":all:"]
    words += ["--disable-pip-version-check", "--no-cache-dir", f"rust-just=={VERSION}"]
    # The user's own settings of pip stay in force, but for two that --target cannot live with.
    ours = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "TMPDIR": str(place)}
    env = {**os.environ, **ours}
    return run([*pip, *words], f"installing the command runner just {VERSION} (about 2 MB)", env)


def pip(place: Path) -> list:
    """The start of a command line for pip; unpacked under `place` if there is no other."""
    if ask(["python3", "-m", "pip", "--version"]) is not None:
        return ["python3", "-m", "pip"]
    if not aptget.present():
        looked = f"On the PATH and in {HOME}; to install it, `python3 -m pip`: there is no pip."
        do = "Install pip (Debian: python3-pip), or install `just` yourself, and run this again."
        raise Refusal(Exit.RUNNER, WANTED, looked, do)
    say("no pip on this machine: borrowing the wheel of Debian's")
    view = aptget.View("system", WANTED, extra=())
    offer = view.candidates("python3-pip-whl")
    if not offer:
        raise view.missing("python3-pip-whl")
    tree = view.download("python3-pip-whl", offer[0][0], place)
    wheel = next(tree.glob("usr/share/python-wheels/pip-*.whl"))
    return ["python3", f"{wheel}/pip"]


def refuse(done: Done) -> Refusal:
    looked = f"On the PATH and in {HOME}; then tried `python3 -m pip`: "
    if done.no_space():
        return cache.disk_full("20 MB for the command runner")
    if done.no_network():
        do = "Connect this machine to the network, or install `just` yourself, and run this again."
        return Refusal(Exit.NETWORK, WANTED, looked + "no answer from the network.", do, done.output)
    do = "Install `just` yourself, and run this again."
    return Refusal(Exit.RUNNER, WANTED, looked + done.reason() + ".", do, done.output)
