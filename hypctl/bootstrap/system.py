"""The parts that apt installs: a linker for the host programs, and QEMU.

QEMU has two bars. Below `LOWEST` the image does not run and the set-up refuses. Below `MODELS` a
CPU model of the tests is missing: good enough to run guests, so a QEMU that is there stays, and
the test that needs the model fails by its name. Where there is none, the first suite at or above
`MODELS` is chosen, the system's own before backports.
"""

from __future__ import annotations

import re
import shutil
import time

from . import aptget, byhand, cache
from .report import Exit, Refusal, ask, say

LOWEST = (7, 2)
MODELS = (8, 2)  # has neoverse-n2
TESTED = ("max", "neoverse-n2", "cortex-a76", "cortex-a53")
CHANNEL = cache.pin("toolchain.pin")["channel"]


class Linker:
    name = "linker"
    wanted = "A C linker, `cc`, to link the programs that run on this machine."

    def holds(self, record: dict) -> bool:
        return record["path"] == shutil.which("cc") and cache.unchanged(record["mark"])

    def find(self) -> dict | None:
        path = shutil.which("cc")
        return path and {"path": path, "how": "found", "mark": cache.mark(path)}

    def get(self) -> dict:
        byhand.needs_apt(self.wanted, CHANNEL)
        view = aptget.View("system", self.wanted, extra=())
        offer = view.candidates("gcc")
        if not offer:
            raise view.missing("gcc")
        view.install(["gcc", "libc6-dev"], offer[0][1])
        return found_after(self, f"apt, from {offer[0][1]}")


class Qemu:
    name = "qemu"
    program = "qemu-system-aarch64"
    wanted = f"{program} {LOWEST[0]}.{LOWEST[1]} or newer."

    def holds(self, record: dict) -> bool:
        return record["path"] == shutil.which(self.program) and cache.unchanged(record["mark"])

    def find(self) -> dict | None:
        path = shutil.which(self.program)
        if path is None:
            return None
        version = numbers(ask([path, "--version"]) or "")
        if version < LOWEST:
            raise Refusal(
                Exit.QEMU_OLD,
                self.wanted,
                f"{path} is version {dotted(version) or 'unknown'}, and it comes first on the PATH.",
                "Upgrade that package, or put a newer QEMU before it on the PATH.",
            )
        offered = set((ask([path, "-machine", "virt", "-cpu", "help"]) or "").split())
        models = [model for model in TESTED if model in offered]
        lacking = [model for model in TESTED if model not in offered]
        if lacking:
            say(f"QEMU {dotted(version)} at {path} lacks {', '.join(lacking)}: guests run,")
            say(f"but the tests on all CPU models need {dotted(MODELS)} or newer")
        return {
            "path": path,
            "version": dotted(version),
            "models": models,
            "how": "found",
            "mark": cache.mark(path),
        }

    def get(self) -> dict:
        byhand.needs_apt(self.wanted, CHANNEL)
        package = "qemu-system-arm"
        view = aptget.View("system", self.wanted, extra=("{}-backports",))
        offers = [(numbers(version), suite) for version, suite in view.candidates(package)]
        if not offers:
            raise view.missing(package)
        new = [offer for offer in reversed(offers) if offer[0] >= MODELS]
        version, suite = new[0] if new else offers[0]
        if version < LOWEST:
            raise Refusal(
                Exit.QEMU_OLD,
                self.wanted,
                f"Not on the PATH, and the newest {package} on offer is {dotted(version)}"
                f" (looked in {', '.join(view.suites)}).",
                "Install a newer QEMU by hand, from a newer release of the system or from source.",
            )
        view.install([package], suite)
        return found_after(self, f"apt, from {suite}")


def found_after(part, how: str) -> dict:
    """The record of what was just installed."""
    record = part.find()
    if record is None:
        raise Refusal(
            Exit.APT,
            part.wanted,
            "apt reported success, but the program is not on the PATH.",
            "See that /usr/bin is on the PATH, and run this again.",
        )
    return {**record, "how": how, "when": time.strftime("%Y-%m-%d %H:%M:%S")}


def numbers(text: str) -> tuple:
    """The version in a banner or a package version (`1:10.0.2+ds-2` is 10.0.2); () without one."""
    match = re.search(r"(?:^|[\s:])(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in match.groups() if part) if match else ()


def dotted(version: tuple) -> str:
    return ".".join(map(str, version))
