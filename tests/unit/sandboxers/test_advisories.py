"""Which versions are known to be vulnerable."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from sandboxers import advisories
from sandboxers.advisories import ADVISORIES, affecting, repaired_by_debian


@pytest.mark.parametrize(
    ("program", "version", "affected"),
    [
        ("runc", "1.1.11", True),
        ("runc", "1.1.12", True),  # repaired of the first, not of the later ones, which its line never was
        ("runc", "1.2.7", True),
        ("runc", "1.2.8", False),
        ("runc", "1.3.2", True),
        ("runc", "1.3.3", False),
        ("runc", "1.4.0", False),
        ("crun", "1.4.3", True),
        ("crun", "1.28", False),
        ("qemu", "7.2.8", True),
        ("qemu", "7.2.22", False),
        ("qemu", "8.1.5", True),
        ("qemu", "10.0.2", False),
        ("virtiofsd", "1.13.2", False),
        ("virtiofsd", "6.2.0", True),
        ("virtiofsd", "7.2.1", False),
        ("another", "0.1", False),
    ],
)
def test_a_version_is_affected_until_its_line_or_a_later_one_is_repaired(
    program: str, version: str, affected: bool
) -> None:
    assert bool(affecting(program, version)) is affected


def test_a_repair_is_that_of_the_single_fault() -> None:
    assert "CVE-2024-21626" not in {advisory.cve for advisory in affecting("runc", "1.1.12")}


def test_repairs_are_in_ascending_order_and_ids_are_ids() -> None:
    for advisory in ADVISORIES:
        assert advisory.cve.startswith("CVE-20")
        numbers = [tuple(map(int, version.split("."))) for version in advisory.fixed]
        assert numbers == sorted(numbers)


def test_debians_changelog_tells_what_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisories, "_CHANGELOG", f"{tmp_path}/{{}}.gz")
    with gzip.open(tmp_path / "runc.gz", "wt") as file:
        file.write("runc (1.1.5+ds1-1+deb12u1)\n  * CVE-2024-21626: several\n  * CVE-2023-25809\n")
    assert repaired_by_debian("runc") == frozenset({"CVE-2024-21626", "CVE-2023-25809"})
    assert repaired_by_debian("crun") is None
