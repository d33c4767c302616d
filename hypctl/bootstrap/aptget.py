"""Packages of a Debian-like system, through a view of its mirror that is ours alone.

The view (`.cache/apt/NAME/`) is an apt configuration with its own source list, package lists and
archive cache. The mirror's address comes from the system's own apt; we add suites to it that the
system does not list. So the system's sources, lists and pins stay as they are, and a stale list
does no harm. Three views are in use:

    system    the system's own suites plus backports, over the system's dpkg status: for installing
    sources   newer suites over an empty status: for downloading single packages to unpack
    arm64     a suite of another architecture, likewise

apt says "fetched nothing" and "the mirror has no such package" in much the same way, so what
counts is not apt's exit code but whether the package has a candidate afterwards.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import cache
from .report import Done, Exit, Refusal, ask, megabytes, run, say

KEYRINGS = [Path("/usr/share/keyrings")]
VENDORS = ("Debian", "Ubuntu")


def present() -> bool:
    return bool(shutil.which("apt-get") and shutil.which("apt-cache") and shutil.which("dpkg"))


class View:
    def __init__(
        self, name: str, wanted: str, extra: tuple, own_status: bool = True, architecture: str = ""
    ):
        """`extra`: suites beside the system's; `{}` stands for the system's code name.

        `architecture`: of the packages, if it is not the system's.
        """
        self.wanted = wanted
        self.place = cache.HERE / "apt" / name
        self.config = self.place / "apt.conf"
        self.own_status = own_status
        self.architecture = architecture
        self.suites: list = []
        shutil.rmtree(self.place, ignore_errors=True)
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.place / folder).mkdir(parents=True)
        self._configure(sources=None)
        targets = self._targets([]) or self._targets_after_update()
        self._configure(self._sources(targets, extra))
        self.updated = self._update(f"reading the package lists of {', '.join(self.suites)}")

    def _configure(self, sources: str | None) -> None:
        place = self.place
        lines = [
            f'Dir::State::Lists "{place}/lists";',
            f'Dir::Cache "{place}/cache";',
            'APT::Sandbox::User "root";',
            'Acquire::Languages "none";',
            'Acquire::Retries "2";',
            'Acquire::http::Timeout "30";',
            'DPkg::Lock::Timeout "300";',
            'DPkg::Use-Pty "false";',
        ]
        for index in ("DEP-11", "DEP-11-icons", "DEP-11-icons-small", "DEP-11-icons-hidpi", "CNF"):
            lines.append(f'Acquire::IndexTargets::deb::{index}::DefaultEnabled "false";')
        if not self.own_status:
            (place / "status").touch()
            lines.append(f'Dir::State::status "{place}/status";')
        # The system's own sources are read as they are: only afterwards is it about packages.
        if self.architecture and sources is not None:
            lines.append(f'APT::Architecture "{self.architecture}";')
            lines.append(f'APT::Architectures "{self.architecture}";')
        if sources is not None:
            (place / "sources.list").write_text(sources)
            lines.append(f'Dir::Etc::SourceList "{place}/sources.list";')
            lines.append('Dir::Etc::SourceParts "/dev/null";')
        self.config.write_text("\n".join(lines) + "\n")

    def _targets(self, options: list) -> list:
        """(mirror address, suite, code name, component) for each suite of the distribution."""
        shape = "$(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT) $(ORIGIN)"
        lines = ask(["apt-get", *options, "indextargets", "--format", shape, "Created-By: Packages"])
        words = [line.split() for line in (lines or "").splitlines()]
        return [word[:4] for word in words if len(word) == 5 and word[4] in VENDORS]

    def _targets_after_update(self) -> list:
        # A machine that never read its package lists knows its mirror only by its source list.
        done = self._update("reading the system's package lists")
        targets = self._targets(["-c", self.config])
        if not targets:
            raise self._refusal(done, "apt's own sources name no Debian or Ubuntu mirror.")
        return targets

    def _sources(self, targets: list, extra: tuple) -> str:
        rings = [ring for folder in KEYRINGS for ring in folder.glob("*-archive-keyring.[gp][pg][gp]")]
        signed = f"[signed-by={','.join(map(str, sorted(rings)))}] " if rings else ""
        base = next((t for t in targets if "-" not in t[2]), targets[0])
        suites = [] if not self.own_status else [(t[0], t[1], t[3]) for t in targets]
        suites += [(base[0], name.format(base[2]), "main") for name in extra]
        self.suites = list(dict.fromkeys(suite for _, suite, _ in suites))
        return "".join(f"deb {signed}{u} {s} {c}\n" for u, s, c in dict.fromkeys(suites))

    def _update(self, doing: str) -> Done:
        cache.require(100_000_000, "package lists")
        done = run(["apt-get", "-c", self.config, "update"], doing)
        if done.no_space():
            raise cache.disk_full("100 MB for package lists")
        return done

    def candidates(self, package: str) -> list:
        """(version, suite) pairs on offer, newest first as apt sorts them."""
        table = ask(["apt-cache", "-c", str(self.config), "madison", package]) or ""
        rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
        return [(r[1], r[2].split()[1].split("/")[0]) for r in rows if len(r) == 3 and r[0] == package]

    def stands_for(self, package: str, version: str) -> str | None:
        """The first package that a package without files of its own depends on."""
        shown = ask(["apt-cache", "-c", str(self.config), "show", f"{package}={version}"]) or ""
        depends = next((line for line in shown.splitlines() if line.startswith("Depends:")), "")
        words = depends.removeprefix("Depends:").replace(",", " ").split()
        return words[0] if words else None

    def missing(self, package: str) -> Refusal:
        """Why there is no candidate for `package`."""
        kind = f" for {self.architecture}" if self.architecture else ""
        return self._refusal(self.updated, f"No {package}{kind} in {', '.join(self.suites)}.")

    def _refusal(self, done: Done, looked: str) -> Refusal:
        if done.no_network():
            return Refusal(
                Exit.NETWORK,
                self.wanted,
                "The package mirror that apt is set up with does not answer.",
                "Connect this machine (or set apt's proxy) and run this again.",
                done.output,
            )
        return Refusal(
            Exit.APT,
            self.wanted,
            looked,
            "Look at apt's messages below; `apt-get update` has to work on this machine.",
            done.output,
        )

    def download(self, package: str, version: str, into: Path) -> Path:
        """Fetches one package and unpacks it into the folder `into`; returns that folder."""
        title = f"fetching {package} {version}"
        size = _size(["apt-cache", "-c", str(self.config), "show", f"{package}={version}"])
        cache.require(2 * size, package)
        done = run(
            ["apt-get", "-c", self.config, "download", f"{package}={version}"],
            title + (f" ({megabytes(size)})" if size else ""),
            cwd=into,
        )
        debs = list(into.glob("*.deb"))
        if not done.ok() or not debs:
            raise self._failed(done, f"`apt-get download {package}={version}` failed.")
        tree = into / "tree"
        done = run(["dpkg", "-x", debs[0], tree], f"unpacking {package}")
        debs[0].unlink()
        if not done.ok():
            raise self._failed(done, f"`dpkg -x` of {package} failed.")
        return tree

    def install(self, packages: list, suite: str) -> None:
        """Installs packages on the system, dependencies from `suite` where they must be newer."""
        words = ["-c", str(self.config), "-t", suite, "--no-install-recommends", "install", "-y"]
        plan = ask(["apt-get", *words, "--print-uris", *packages]) or ""
        size = sum(int(line.split()[2]) for line in plan.splitlines() if line.startswith("'"))
        command = ["apt-get", *words, *packages]
        prefix = self._as_root(command)
        done = run(
            [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", *command],
            f"installing {' '.join(packages)} from {suite} ({megabytes(size)} to download)",
            patient=True,
        )
        shutil.rmtree(self.place / "cache", ignore_errors=True)
        if not done.ok():
            raise self._failed(done, f"`{' '.join(command)}` failed.")

    def _as_root(self, command: list) -> list:
        if os.geteuid() == 0:
            return []
        if shutil.which("sudo") and ask(["sudo", "-n", "true"]) is not None:
            return ["sudo", "-n"]
        raise Refusal(
            Exit.NOT_ROOT,
            self.wanted,
            "Installing it takes root: this user is not, and sudo without a password is not set up.",
            ["Run this line, then run this again:", "sudo " + " ".join(command)],
        )

    def _failed(self, done: Done, looked: str) -> Refusal:
        if done.no_space():
            say("the disk filled up")
            return cache.disk_full(self.wanted.rstrip("."))
        return self._refusal(done, looked)


def _size(argv: list) -> int:
    lines = (ask(argv) or "").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("Size:")), 0)
