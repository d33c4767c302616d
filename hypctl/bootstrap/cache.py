"""The cache folder: where everything lands, what was noted about it, and who may write.

    .cache/setup.json      one record a part
    .cache/setup.lock      held by the run that changes anything
    .cache/tmp/            work in progress; emptied by the next run that takes the lock
    .cache/toolchain       link to the toolchain in use (see toolchain.py)
    .cache/apt/            our own view of the package mirror (see aptget.py)

The folder is `.cache` in the checkout, or what the environment variable HYP_CACHE names.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path

from .report import Exit, Refusal, megabytes, say

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(os.path.abspath(os.environ.get("HYP_CACHE") or CHECKOUT / ".cache"))
RECORDS = HERE / "setup.json"
TMP = HERE / "tmp"


def records() -> dict:
    """What earlier runs noted; empty when there is nothing, or nothing legible."""
    try:
        found = json.loads(RECORDS.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def note(part: str, record: dict) -> None:
    """Replaces one part's record. The caller holds the lock."""
    everything = records()
    everything[part] = record
    draft = RECORDS.with_suffix(".new")
    draft.write_text(json.dumps(everything, indent=2) + "\n")
    os.replace(draft, RECORDS)


@contextlib.contextmanager
def lock():
    """The right to change the cache. Waits for another run; clears what an aborted one left."""
    HERE.mkdir(parents=True, exist_ok=True)
    with open(HERE / "setup.lock", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up is at work in {HERE}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        shutil.rmtree(TMP, ignore_errors=True)
        TMP.mkdir(exist_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(TMP, ignore_errors=True)


@contextlib.contextmanager
def workshop():
    """A fresh folder on the cache's file system, gone afterwards. The caller holds the lock."""
    place = Path(tempfile.mkdtemp(dir=TMP))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def publish(made: Path, place: Path) -> None:
    """Puts a finished file or folder where it belongs, replacing what was there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        place.rename(Path(tempfile.mkdtemp(dir=TMP)) / "old")
    os.replace(made, place)


def link(place: Path, target: Path) -> None:
    """Points `place` at `target` in one step; relative inside the cache, so that it can move."""
    text = os.path.relpath(target, place.parent) if HERE in target.parents else str(target)
    draft = Path(tempfile.mkdtemp(dir=TMP)) / "link"
    draft.symlink_to(text)
    os.replace(draft, place)


def mark(*files) -> dict:
    """Size and time of files: changes when a file is replaced, costs no program."""
    return {str(file): [os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files}


def unchanged(marks: dict) -> bool:
    try:
        return bool(marks) and mark(*marks) == marks
    except OSError:
        return False


def require(count: int, what: str) -> None:
    """Refuses when fewer than `count` bytes are free where the cache is."""
    free = shutil.disk_usage(HERE).free
    if free < count:
        raise disk_full(f"{megabytes(count)} for {what}", free)


def disk_full(what: str, free: int | None = None) -> Refusal:
    free = shutil.disk_usage(HERE).free if free is None else free
    return Refusal(
        Exit.DISK_FULL,
        f"Room on the disk: {what}.",
        f"The file system of {HERE} has {megabytes(free)} left.",
        "Free some space, or let HYP_CACHE name a folder on another file system, and run this again.",
    )


def pin(name: str) -> dict:
    """A file of `key = value` lines beside this module."""
    lines = (Path(__file__).parent / name).read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}
