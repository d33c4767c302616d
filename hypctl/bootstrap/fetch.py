"""Guests from elsewhere: unmodified programs, taken from the distribution's packages.

    u-boot    Debian's `u-boot-qemu`, its build for the arm64 virt board, as `.cache/guests/u-boot.bin`
"""

from __future__ import annotations

from pathlib import Path

from . import aptget, byhand, cache
from .report import Exit, Refusal
from .system import CHANNEL

GUESTS = {"u-boot": ("u-boot-qemu", "usr/lib/u-boot/qemu_arm64/u-boot.bin", "u-boot.bin")}


def place(guest: str) -> Path:
    return cache.HERE / "guests" / GUESTS[guest][2]


def fetch(guest: str) -> Path:
    """The guest's file, downloaded if it is not there yet."""
    package, inside, _ = GUESTS[guest]
    if place(guest).exists():
        return place(guest)
    wanted = f"The guest {guest}, from Debian's package {package}."
    with cache.lock():
        byhand.needs_apt(wanted, CHANNEL)
        view = aptget.View("system", wanted, extra=())
        offer = view.candidates(package)
        if not offer:
            raise view.missing(package)
        with cache.workshop() as workshop:
            tree = view.download(package, offer[0][0], workshop)
            if not (tree / inside).exists():
                looked = f"{package} {offer[0][0]} has no file {inside}."
                raise Refusal(Exit.APT, wanted, looked, "Report this: the package has changed.")
            cache.publish(tree / inside, place(guest))
            cache.note(f"guest {guest}", {"path": str(place(guest)), "version": offer[0][0]})
    return place(guest)
