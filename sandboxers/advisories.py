"""Versions of the programs that isolate pods which are known to be vulnerable, and in which they were repaired.

Only what a container or guest can make use of through what sandboxd lets these programs do. Distributions repair older
versions without renumbering them: what Debian's changelog of the installed package names as fixed is fixed.
"""

from __future__ import annotations

import gzip
import re
from typing import NamedTuple

_CHANGELOG = "/usr/share/doc/{}/changelog.Debian.gz"  # Debian Policy, 12.7
_CVE = re.compile(r"CVE-\d{4}-\d+")


class Advisory(NamedTuple):
    """`fixed` are the first versions without the fault, one per line of versions, the newest last; none before `since`
    has it."""

    program: str
    cve: str
    fixed: tuple[str, ...]
    what: str
    since: str = "0"


ADVISORIES = (
    Advisory("runc", "CVE-2024-21626", ("1.1.12",), "a container's working directory can be on the host"),
    Advisory(
        "runc", "CVE-2025-31133", ("1.2.8", "1.3.3"), "masked paths can be made to point to the host's /proc"
    ),
    Advisory(
        "runc", "CVE-2025-52565", ("1.2.8", "1.3.3"), "the console can be mounted over the host's /proc"
    ),
    Advisory(
        "runc", "CVE-2025-52881", ("1.2.8", "1.3.3"), "writes to /proc can be redirected to other files"
    ),
    Advisory("crun", "CVE-2022-27650", ("1.4.4",), "processes of exec inherit capabilities"),
    Advisory("qemu", "CVE-2023-6693", ("7.2.9", "8.2.1"), "virtio-net writes beyond its stack"),
    Advisory("qemu", "CVE-2024-3446", ("7.2.11", "8.2.3"), "virtio devices can be made to call themselves"),
    # The one in C, which came with QEMU and has its versions; the one in Rust has begun anew with 0.1.
    Advisory(
        "virtiofsd", "CVE-2022-0358", ("7.0",), "files keep a group that their maker is not in", since="5.0"
    ),
)


def affecting(program: str, version: str) -> list[Advisory]:
    """Return what a version of a program, as its makers number it, is known to suffer from."""
    return [
        advisory
        for advisory in ADVISORIES
        if advisory.program == program
        and _numbers(version) >= _numbers(advisory.since)
        and not _is_fixed(_numbers(version), [_numbers(fixed) for fixed in advisory.fixed])
    ]


def repaired_by_debian(package: str) -> frozenset[str] | None:
    """Return the ids of what the installed version of a package has repaired; None where its changelog is not kept."""
    try:
        with gzip.open(_CHANGELOG.format(package), "rt", encoding="utf-8", errors="replace") as file:
            return frozenset(_CVE.findall(file.read()))
    except OSError:
        return None


def _is_fixed(version: tuple[int, ...], fixed: list[tuple[int, ...]]) -> bool:
    of_its_line = [one for one in fixed if one[:2] == version[:2]]
    return version >= max(of_its_line or fixed)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
