"""Debian packages by name, with a stand-in for apt that has them all in version 1:2.0-3."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import FailedPrecondition, Internal
from vmm.image.packages import Archive
from vmm.image.tools import Tools

APT = r"""#!/bin/sh
echo "$(basename "$0") $*" >>"$LOG"
while [ "${1#-}" != "$1" ]; do shift; done
case "$1" in
indextargets) printf 'main %s\n' $MIRRORS ;;
download)
    shift
    for name; do
        case "$name" in
        none*) echo "E: Unable to locate package $name" >&2; exit 100 ;;
        other*) name=another ;;
        esac
        printf '%s' "$name" >"${name}_1%3a2.0-3_amd64.deb"
    done ;;
depends) printf '%s\n  Depends: base\n  Depends: linux-image-6.1-cloud\n' "$2" ;;
esac
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "apt-cache"):
        (programs / name).write_text(APT)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("MIRRORS", "http://mirror.example/debian http://mirror.example/debian-security/")
    return tmp_path / "log"


@pytest.fixture
async def tools() -> AsyncIterator[Tools]:
    tools = Tools()
    yield tools
    # The sweep for what else ended comes later than the programs' own ends.
    await asyncio.sleep(0.15)
    tools.close()


def commands(log: Path) -> list[str]:
    """The commands that apt was given, without options."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [" ".join(word for word in line.split()[1:] if not word.startswith("-")) for line in lines]


async def test_packages_are_fetched_once(tmp_path: Path, log: Path, tools: Tools) -> None:
    first = await Archive(tools, tmp_path / "cache").fetch(["b", "a"])
    before = commands(log)

    second = await Archive(tools, tmp_path / "cache").fetch(["a", "b"])

    assert second == first
    assert [(package.name, package.version) for package in first] == [("a", "1:2.0-3"), ("b", "1:2.0-3")]
    assert first[0].path.read_text() == "a"
    assert first[0].sha256 != first[1].sha256
    assert commands(log) == before
    assert [command.partition(" ")[0] for command in before] == ["indextargets", "update", "download"]


async def test_packages_are_fetched_again_on_request(tmp_path: Path, log: Path, tools: Tools) -> None:
    await Archive(tools, tmp_path / "cache").fetch(["a"])

    await Archive(tools, tmp_path / "cache", refresh=True).fetch(["a"])

    assert commands(log).count("download a") == 2


async def test_fixes_of_security_come_from_where_the_machine_gets_them(
    tmp_path: Path, log: Path, tools: Tools
) -> None:
    await Archive(tools, tmp_path / "cache").fetch(["a"])

    sources = (tmp_path / "cache/apt/sources.list").read_text().splitlines()
    assert [line.partition("] ")[2] for line in sources] == [
        "http://mirror.example/debian bookworm main",
        "http://mirror.example/debian bookworm-updates main",
        "http://mirror.example/debian-security bookworm-security main",
    ]


async def test_a_machine_without_a_debian_mirror_is_told_so(
    tmp_path: Path, log: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRRORS", "http://mirror.example/ubuntu")

    with pytest.raises(FailedPrecondition, match="name no Debian mirror"):
        await Archive(tools, tmp_path / "cache").fetch(["a"])


async def test_a_package_that_is_not_to_be_had_is_told_in_the_words_of_apt(
    tmp_path: Path, log: Path, tools: Tools
) -> None:
    with pytest.raises(Internal, match="Unable to locate package none"):
        await Archive(tools, tmp_path / "cache").fetch(["a", "none"])

    assert (await Archive(tools, tmp_path / "cache").fetch(["a"]))[0].name == "a"


async def test_packages_other_than_those_asked_for_are_refused(
    tmp_path: Path, log: Path, tools: Tools
) -> None:
    with pytest.raises(Internal, match="does not hold other: remove it"):
        await Archive(tools, tmp_path / "cache").fetch(["other"])


async def test_a_metapackage_stands_for_one_of_what_it_depends_on(
    tmp_path: Path, log: Path, tools: Tools
) -> None:
    for _ in range(2):
        archive = Archive(tools, tmp_path / "cache")
        assert await archive.member("linux-image-cloud", "linux-image-") == "linux-image-6.1-cloud"
    assert commands(log).count("depends linux-image-cloud") == 1

    with pytest.raises(Internal, match=r"depends on no linux-source-\*"):
        await Archive(tools, tmp_path / "cache").member("linux-source", "linux-source-")
