"""What to install by hand where there is no apt: another system, or a Linux with another manager."""

from __future__ import annotations

import shutil

from . import aptget
from .report import Exit, Refusal, ask

LIST = [
    "- a C linker reachable as `cc` (gcc or clang with the C library's development files);"
    " for `./just fuzz` a C++ compiler reachable as `c++`",
    "- QEMU 8.2 or newer with qemu-system-aarch64 (7.2 runs guests, but lacks CPU models of the tests)",
    "- rustup with cargo; then `rustup toolchain install {channel} --profile minimal"
    " -c rust-src -c clippy -c rustfmt`",
    "- the command runner `just` 1.31 or newer",
]


def needs_apt(wanted: str, channel: str) -> None:
    """Refuses on a machine without apt, with the whole list: the next part would only ask again."""
    system = (ask(["uname", "-s"]) or "an unknown system").strip()
    if system == "Linux" and aptget.present():
        return
    absent = [name for name in ("apt-get", "apt-cache", "dpkg") if not shutil.which(name)]
    looked = "On the PATH; "
    if system != "Linux":
        looked += f"this is {system}, and the set-up installs packages on Debian-like Linux only."
    else:
        looked += f"there is no {', '.join(absent)} to install it with."
    lines = [line.format(channel=channel) for line in LIST]
    raise Refusal(Exit.BY_HAND, wanted, looked, ["Install by hand, then run this again:", *lines])
