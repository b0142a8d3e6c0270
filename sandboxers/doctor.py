"""What this node has and lacks for a type, as findings with the command that helps; no daemon needs to run.

What every type needs is examined here, what one type needs by its own `examine` (`sandboxers.isolation`).
"""

from __future__ import annotations

import enum
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from common.cgroup import Hierarchies
from common.cgroup.locate import UNIFIED
from common.errors import SandboxdError
from common.linux.features import Feature, allowed
from common.linux.pidfd import exit_info
from common.process.exits import ExitWatcher
from common.process.spawn import CAPTURE, CLEAN_ENVIRONMENT, run, spawn
from sandboxers.advisories import affecting, repaired_by_debian

# FileDescriptorStorePreserve= of systemd.service(5).
_SYSTEMD_THAT_PRESERVES = 254
_SUPERVISE = "install configs/systemd/sandboxd@.service.d/supervise.conf as the README says"


_INSTEAD = {
    Feature.PIDFD_INFO: ((6, 15), "exit codes across a restart come from the supervisor"),
    Feature.PIDFD_HUP: ((6, 9), "ends of others' children are looked for once more"),
    Feature.CGROUP_KILL: ((5, 14), "processes of a cgroup are killed one by one"),
}
"""Since when a feature is there, and what is done without it."""


class Severity(enum.StrEnum):
    """How bad it is: with an error no pod starts; a warning tells what may be lost, a note what is done instead."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was found, and where it helps what to do about it."""

    severity: Severity
    subject: str
    found: str
    advice: str = ""


class Examination:
    """What the checks of a node look through; `async with`, in an event loop."""

    def __init__(
        self,
        hierarchies: Hierarchies | None = None,
        path: str = CLEAN_ENVIRONMENT["PATH"],
        systemd_directory: str = "/run/systemd/system",
        timeout_s: float = 10.0,
    ) -> None:
        """:param path: where programs are looked for.
        :param systemd_directory: exists where systemd is the init, sd_booted(3).
        :param timeout_s: how long a program may take to tell its version.
        """
        self._exits = ExitWatcher()
        self._hierarchies = Hierarchies.read() if hierarchies is None else hierarchies
        self._path = path
        self._systemd_directory = systemd_directory
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Examination:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._exits.close()

    @property
    def exits(self) -> ExitWatcher:
        """Who tells the ends of processes; there is one in a process."""
        return self._exits

    async def version(self, program: str) -> str | None:
        """Return the first line that `program --version` prints, or None if it cannot be run."""
        path = shutil.which(program, path=self._path)
        return None if path is None else await self._first_line(path, "--version")

    async def vulnerabilities(self, name: str, program: str, version: str) -> list[Finding]:
        """Return what a program is known to suffer from and its package has not repaired, as one finding or none.

        :param name: the program's name in the advisories.
        :param program: what it is run as; its package is found by where it is.
        :param version: what it says of itself, with its number somewhere in it.
        """
        number = re.search(r"\d+(\.\d+)+", version)
        advisories = affecting(name, number[0]) if number else []
        if not advisories:
            return []
        path = shutil.which(program, path=self._path) or program
        package = (await self._package_of(path) or "").partition(":")[0]
        repaired = repaired_by_debian(package) if package else frozenset()
        if repaired is None:
            known = ", ".join(advisory.cve for advisory in advisories)
            return [
                Finding(
                    Severity.NOTE,
                    name,
                    f"{number[0] if number else ''} had {known}; the package {package} may have repaired that",
                    f"apt-get changelog {package} | grep CVE",
                )
            ]
        left = [advisory for advisory in advisories if advisory.cve not in repaired]
        if not left:
            return []
        faults = "; ".join(f"{advisory.cve} ({advisory.what})" for advisory in left)
        newest = max(
            (advisory.fixed[-1] for advisory in left), key=lambda fixed: [*map(int, fixed.split("."))]
        )
        upgrade = f"apt-get install --only-upgrade {package}, or" if package else ""
        return [
            Finding(
                Severity.WARNING,
                name,
                f"vulnerable: {faults}",
                f"{upgrade} install {newest} or newer".strip(),
            )
        ]

    async def _package_of(self, path: str) -> str | None:
        query = shutil.which("dpkg-query", path=self._path)
        return None if query is None else await self._first_line(query, "--search", path)

    async def _first_line(self, *command: str) -> str | None:
        try:
            done = await run(
                list(command),
                watcher=self._exits,
                timeout_s=self._timeout_s,
                stdout=CAPTURE,
                stderr=CAPTURE,
            )
        except (SandboxdError, OSError):
            return None
        if done.status.code != 0:
            return None
        return done.stdout.decode(errors="replace").partition("\n")[0].strip()

    async def of_all_types(self) -> list[Finding]:
        """Return what is found of what every type needs."""
        systemd = await self._systemd_version()
        return [
            Finding(Severity.OK, "kernel", os.uname().release),
            await self._exit_codes(),
            self._features(),
            _systemd(systemd),
            *self._cgroups(),
            *self._cgroup_users(),
        ]

    async def _exit_codes(self) -> Finding:
        """Let a child end, and ask the kernel for its exit code as one who is not its parent must."""
        subject = "exit codes"
        child = spawn(["true"], watcher=self._exits)
        pidfd = os.dup(child.pidfd)
        try:
            await child.wait()
            told = exit_info(pidfd) is not None
        finally:
            os.close(pidfd)
        if told:
            return Finding(
                Severity.OK, subject, "the kernel tells them to whoever has a pidfd (PIDFD_GET_INFO)"
            )
        return Finding(
            Severity.WARNING,
            subject,
            "the kernel (before 6.15) tells them to parents alone: what ends while no daemon runs has none,"
            " unless sandboxd runs with --supervise",
            _SUPERVISE,
        )

    def _features(self) -> Finding:
        """Tell which features of newer kernels are used, and what is done in place of those that are not."""
        subject = "kernel features"
        release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
        missing = [
            f"{feature.value}: {instead}"
            for feature, (since, instead) in _INSTEAD.items()
            if not allowed(feature)
            or release < since
            or (feature is Feature.CGROUP_KILL and not self._hierarchies.unified)
        ]
        if not missing:
            return Finding(Severity.OK, subject, "all that are made use of are there")
        return Finding(Severity.NOTE, subject, "done another way, for want of " + "; ".join(missing))

    def _cgroup_users(self) -> Iterator[Finding]:
        """Tell who divides the cgroups among pods, and what moving processes between them costs."""
        top = self._hierarchies.directory(UNIFIED if self._hierarchies.unified else "memory", "/")
        if top is None:
            return
        drivers = {"kubepods.slice": "systemd", "kubepods": "cgroupfs"}
        found = [driver for name, driver in drivers.items() if os.path.isdir(f"{top}/{name}")]
        if len(found) == 1:
            yield Finding(
                Severity.OK, "cgroup driver", f"{found[0]}, as the kubelet's pods show; either is understood"
            )
        elif found:
            yield Finding(
                Severity.WARNING,
                "cgroup driver",
                "the kubelet has pods in kubepods.slice and in kubepods: it was changed while pods ran",
                "drain the node, and remove the one that is empty",
            )
        else:
            yield Finding(
                Severity.NOTE, "cgroup driver", "no kubelet has made pods here; either is understood"
            )
        if not _favors_moves():
            yield Finding(
                Severity.NOTE,
                "cgroup moves",
                "wait up to 16 ms for the whole machine each; sandboxd pays ahead, the OCI runtime does not always",
                "mount -o remount,favordynmods /sys/fs/cgroup (Linux 6.0 or newer; makes forks a little dearer)",
            )

    async def _systemd_version(self) -> int | None:
        """Return the version of the systemd that runs this node; None where another init does, 0 if it is not told."""
        if not os.path.isdir(self._systemd_directory):
            return None
        found = re.match(r"systemd (\d+)", await self.version("systemctl") or "")
        return int(found[1]) if found else 0

    def _cgroups(self) -> Iterator[Finding]:
        subject = "cgroups"
        controllers = self._hierarchies.controllers
        if not controllers:
            yield Finding(
                Severity.ERROR, subject, "none are mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
            )
        elif self._hierarchies.unified:
            yield Finding(Severity.OK, subject, "v2")
        elif UNIFIED in controllers:
            yield Finding(
                Severity.WARNING,
                subject,
                "hybrid: controllers on v1 with a v2 hierarchy beside them, which crun refuses",
                "boot with systemd.unified_cgroup_hierarchy=1, or set runtime.binary to runc",
            )
        else:
            yield Finding(Severity.OK, subject, "v1")


def _favors_moves() -> bool:
    """Tell whether a hierarchy is mounted so that moving processes is cheap (kernel, cgroup-v2.rst: favordynmods)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        mounts = [line.partition(" - ")[2] for line in file]
    return any(mount.startswith("cgroup") and "favordynmods" in mount for mount in mounts)


def _systemd(version: int | None) -> Finding:
    subject = "systemd"
    if version is None:
        return Finding(
            Severity.NOTE,
            subject,
            "does not run this node: nobody keeps connections when the daemon restarts",
            "run sandboxd --supervise",
        )
    if version == 0:
        return Finding(Severity.WARNING, subject, "runs this node, but systemctl does not tell its version")
    if version < _SYSTEMD_THAT_PRESERVES:
        return Finding(
            Severity.WARNING,
            subject,
            f"{version} keeps descriptors over a restart, but not over stop and start (that takes"
            f" {_SYSTEMD_THAT_PRESERVES}), which would end all containers",
            "upgrade with `systemctl restart` (or reload), never stop and start, while pods run",
        )
    return Finding(Severity.OK, subject, f"{version} keeps descriptors over restart, and over stop and start")


def program_finding(subject: str, program: str, version: str | None, advice: str) -> Finding:
    """Tell of a program that pods cannot do without."""
    if version is None:
        return Finding(Severity.ERROR, subject, f"{program} cannot be run", advice)
    return Finding(Severity.OK, subject, version)
