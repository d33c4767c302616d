"""Programs from elsewhere, unmodified, taken from packages of the distribution.

    u-boot        Debian's `u-boot-qemu`, its build for the arm64 virt board
    linux-6.1     the kernel of Debian 12 for arm64: `boot/vmlinuz-*` of what `linux-image-arm64` stands for
    linux-6.12    the kernel of Debian 13
    busybox       Debian's `busybox-static` for arm64, for an initramfs

Each becomes one file in `.cache/guests`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import aptget, byhand, cache
from .report import Exit, Refusal
from .system import CHANNEL


@dataclass(frozen=True)
class Guest:
    """Where a file comes from."""

    package: str
    inside: str  # a pattern below the package's root that one file answers to
    file: str  # its name in the cache
    suite: str = ""  # of Debian; none for the system's own
    architecture: str = ""  # none for the system's own
    stands_for: bool = False  # the package only depends on the one that has the file
    room: int = 0  # bytes that it takes to unpack, if that is far more than the download

    def wanted(self, name: str) -> str:
        return f"The file {name}, from Debian's package {self.package}."

    def view(self, wanted: str) -> aptget.View:
        if not self.suite:
            return aptget.View("system", wanted, extra=())
        name, suites = self.architecture, (self.suite,)
        return aptget.View(name, wanted, suites, own_status=False, architecture=name)


def _kernel(version: str, suite: str) -> Guest:
    return Guest(
        "linux-image-arm64",
        "boot/vmlinuz-*",
        f"linux-{version}",
        suite,
        "arm64",
        stands_for=True,
        room=800_000_000,
    )


GUESTS = {
    "u-boot": Guest("u-boot-qemu", "usr/lib/u-boot/qemu_arm64/u-boot.bin", "u-boot.bin"),
    "linux-6.1": _kernel("6.1", "bookworm"),
    "linux-6.12": _kernel("6.12", "trixie"),
    "busybox": Guest("busybox-static", "**/bin/busybox", "busybox-arm64", "trixie", "arm64"),
}


def place(name: str) -> Path:
    return cache.HERE / "guests" / GUESTS[name].file


def fetch(name: str) -> Path:
    """The guest's file, downloaded if it is not there yet."""
    guest = GUESTS[name]
    if place(name).exists():
        return place(name)
    wanted = guest.wanted(name)
    with cache.lock():
        if place(name).exists():
            return place(name)
        byhand.needs_apt(wanted, CHANNEL)
        view = guest.view(wanted)
        package, version = _resolved(guest, view)
        with cache.workshop() as workshop:
            cache.require(guest.room, f"unpacking {package}")
            tree = view.download(package, version, workshop)
            found = next(tree.glob(guest.inside), None)
            if found is None:
                looked = f"{package} {version} has no file {guest.inside}."
                raise Refusal(Exit.APT, wanted, looked, "Report this: the package has changed.")
            cache.publish(found, place(name))
            record = {"path": str(place(name)), "package": package, "version": version}
            cache.note(f"guest {name}", record)
    return place(name)


def _resolved(guest: Guest, view: aptget.View) -> tuple:
    """The package that has the file, and its version."""
    offer = view.candidates(guest.package)
    if not offer:
        raise view.missing(guest.package)
    package, version = guest.package, offer[0][0]
    if guest.stands_for:
        package = view.stands_for(package, version) or package
        offer = view.candidates(package)
        if not offer:
            raise view.missing(package)
        version = offer[0][0]
    return package, version

