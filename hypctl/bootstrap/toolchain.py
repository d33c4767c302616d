"""The toolchain: the pinned nightly with the sources of `core`, reached as `.cache/toolchain`.

Three ways, in this order; the first that works wins and is noted:

 1. installed   rustup has a toolchain that prints the pinned version and has every component:
                `.cache/toolchain` links to it.
 2. rustup      rustup downloads the pin into a home of its own in our cache. The user's RUSTUP_HOME
                and CARGO_HOME are not named to it, and it may not update itself.
 3. sources     the network has Debian packages but no toolchains: an installed nightly of the same
                minor version, joined with Debian's `rust-src`. rustc finds its libraries from where
                its own driver library lies, so that and the programs are copied; the rest is linked.

Ways 1 and 3 lean on a toolchain that belongs to the user, who may upgrade it. The record therefore
marks the files that matter (size and time), and a change makes the set-up look again.

The path is passed on as RUSTUP_TOOLCHAIN by the justfile. There is no `rust-toolchain.toml`: rustup
would upgrade the user's own nightly for it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from . import aptget, cache
from .report import Exit, Refusal, ask, run, say

PIN = cache.pin("toolchain.pin")
LINK = cache.HERE / "toolchain"
STORE = cache.HERE / "toolchains"
SOURCE = Path("lib/rustlib/src/rust")
COMPONENTS = {
    "rust-src": SOURCE / "library/core/src/lib.rs",
    "cargo": Path("bin/cargo"),
    "clippy": Path("bin/cargo-clippy"),
    "rustfmt": Path("bin/rustfmt"),
}
SUITES = ("forky", "sid", "trixie-backports")  # where a current rust-src is to be had
DOWNLOAD_SIZE = "about 200 MB to download, 700 MB on disk"
DOWNLOAD_ROOM = 1_300_000_000
JOINED_ROOM = 900_000_000


class Rustup:
    """rustup and its cargo: everything else builds on them, so they come first and by hand."""

    name = "rustup"

    def holds(self, record: dict) -> bool:
        there = record["path"] == shutil.which("rustup") and record["cargo"] == shutil.which("cargo")
        return there and None not in (record["path"], record["cargo"])

    def find(self) -> dict:
        absent = [name for name in ("rustup", "cargo") if not shutil.which(name)]
        if absent:
            raise Refusal(
                Exit.RUSTUP,
                "rustup and its cargo.",
                f"There is no {' and no '.join(absent)} on the PATH ({os.environ.get('PATH', '')}).",
                "Install rustup (any default toolchain will do; this project brings its own),"
                " open a new shell, and run this again.",
            )
        return {"path": shutil.which("rustup"), "cargo": shutil.which("cargo"), "how": "found"}

    def get(self) -> dict:
        return self.find()


class Toolchain:
    name = "toolchain"

    def holds(self, record: dict) -> bool:
        return record["pin"] == PIN and LINK.exists() and cache.unchanged(record["mark"])

    def find(self) -> dict | None:
        ours = STORE / PIN["channel"]
        if fits(ours):
            return use(ours, "rustup, into the cache")
        for path in installed():
            if fits(path):
                return use(path, "installed")
        return None

    def get(self) -> dict:
        start = time.monotonic()
        tried = ["Installed toolchains: none is the pinned one with " + ", ".join(COMPONENTS) + "."]
        network = False
        for way in (by_rustup, by_sources):
            try:
                record = way()
                return {**record, "seconds": round(time.monotonic() - start)}
            except Refusal as refusal:
                if refusal.code not in (Exit.NETWORK, Exit.APT, Exit.CORE_SOURCES):
                    raise
                network = network or refusal.code == Exit.NETWORK
                no_fit = refusal.code == Exit.CORE_SOURCES
                looked = refusal.looked
                tried += [looked] if isinstance(looked, str) else looked
        wanted = f"{PIN['channel']} (rustc {PIN['rustc']}) with the sources of core (rust-src)."
        if network and not no_fit:
            raise Refusal(
                Exit.NETWORK, wanted, tried, "Connect this machine to the network and run this again."
            )
        raise Refusal(
            Exit.CORE_SOURCES,
            wanted,
            tried,
            f"Where the network allows it: `rustup toolchain install {PIN['channel']}"
            " --profile minimal -c rust-src -c clippy -c rustfmt`, then run this again.",
        )


def installed() -> list:
    """The user's toolchains, the one named like the pin first."""
    home = Path(os.environ.get("RUSTUP_HOME") or Path.home() / ".rustup")
    found = [path for path in (home / "toolchains").glob("*") if (path / "bin/rustc").exists()]
    return sorted(found, key=lambda path: (not path.name.startswith(PIN["channel"]), path.name))


def version(path: Path) -> str:
    """What `rustc -V` prints, without the program's name."""
    return (ask([str(path / "bin/rustc"), "-V"]) or "").removeprefix("rustc ").strip()


def minor(text: str) -> str:
    match = re.match(r"\d+\.\d+", text)
    return match.group() if match else ""


def fits(path: Path) -> bool:
    there = all((path / file).exists() for file in COMPONENTS.values())
    return there and version(path) == PIN["rustc"]


def use(path: Path, how: str, *leans_on: Path) -> dict:
    """Points `.cache/toolchain` at a complete toolchain; `leans_on`: files it takes from elsewhere."""
    cache.link(LINK, path)
    marks = cache.mark(path / "bin/rustc", *(path / file for file in COMPONENTS.values()), *leans_on)
    return {
        "path": str(LINK),
        "target": str(path),
        "pin": PIN,
        "version": version(path),
        "how": how,
        "mark": marks,
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def by_rustup() -> dict:
    cache.require(DOWNLOAD_ROOM, f"{PIN['channel']} from rustup")
    with cache.workshop() as place:
        command = ["rustup", "toolchain", "install", PIN["channel"], "--profile", "minimal"]
        command += ["-c", "rust-src", "-c", "clippy", "-c", "rustfmt", "--no-self-update"]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RUSTUP_TOOLCHAIN", "CARGO"))}
        env.update(RUSTUP_HOME=f"{place}/rustup", CARGO_HOME=f"{place}/cargo")
        done = run(command, f"rustup: installing {PIN['channel']} ({DOWNLOAD_SIZE})", env)
        if done.no_space():
            raise cache.disk_full(f"about 1.3 GB for {PIN['channel']} from rustup")
        made = next((place / "rustup/toolchains").glob("*"), None) if done.ok() else None
        if made is None or not fits(made):
            why = done.reason() if not done.ok() else f"it did not bring rustc {PIN['rustc']} whole"
            code = Exit.NETWORK if done.no_network() else Exit.CORE_SOURCES
            raise Refusal(code, "", f"rustup, downloading {PIN['channel']}: {why}.", "")
        cache.publish(made, STORE / PIN["channel"])
    return use(STORE / PIN["channel"], "rustup, into the cache")


def by_sources() -> dict:
    want = minor(PIN["rustc"])
    bases = [path for path in installed() if "nightly" in version(path)]
    base = next((path for path in bases if version(path) == PIN["rustc"]), None)
    base = base or next((path for path in bases if minor(version(path)) == want), None)
    label = f"Debian's rust-src for an installed nightly {want}"
    if base is None:
        raise Refusal(Exit.APT, "", f"{label}: no such nightly is installed.", "")
    if not aptget.present():
        raise Refusal(Exit.APT, "", f"{label}: no apt on this machine.", "")
    say(f"no way to download {PIN['channel']} itself; trying {label} ({base.name})")
    view = aptget.View("sources", "The sources of core.", extra=SUITES, own_status=False)
    offers = [offer for offer, _ in view.candidates("rust-src")]
    fitting = [offer for offer in offers if minor(offer) == want]
    if not fitting:
        if not offers:
            refusal = view.missing("rust-src")
            raise Refusal(refusal.code, "", f"{label}: {refusal.looked}", "")
        there = f"{', '.join(SUITES)} have {', '.join(sorted(set(offers)))}"
        raise Refusal(Exit.CORE_SOURCES, "", f"{label}: {there}, none of them {want}.", "")
    with cache.workshop() as place:
        cache.require(JOINED_ROOM, "a toolchain with Debian's rust-src")
        tree = view.download("rust-src", fitting[0], place)
        library = next(tree.glob("usr/src/rustc-*/library"), None)
        if library is None:
            raise Refusal(Exit.CORE_SOURCES, "", f"{label}: the package has no library folder.", "")
        made = place / "toolchain"
        join(base, library, made)
        ours = STORE / f"{PIN['channel']}-debian"
        cache.publish(made, ours)
    return use(ours, f"{base.name} with Debian's rust-src {fitting[0]}", base / "bin/rustc")


def join(base: Path, library: Path, made: Path) -> None:
    """Lays out a toolchain at `made`: programs and driver copied, the rest of `base` linked."""
    (made / SOURCE).mkdir(parents=True)
    shutil.copytree(base / "bin", made / "bin")
    for item in (base / "lib").iterdir():
        if item.name.startswith("librustc_driver"):
            shutil.copy2(item, made / "lib" / item.name)
        elif item.name != "rustlib":
            (made / "lib" / item.name).symlink_to(item)
    for item in (base / "lib/rustlib").iterdir():
        if item.name != "src":
            (made / "lib/rustlib" / item.name).symlink_to(item)
    library.rename(made / SOURCE / "library")
