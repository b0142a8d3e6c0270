"""Debian packages by name: fetched with the machine's own apt, from its own mirrors, without touching its state.

What was fetched once is used again, so that the same request gives the same packages until it is told to refresh.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import FailedPrecondition, Internal
from vmm.image.tools import Tools

SUITE: Final = "bookworm"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_DIGEST_CHARACTERS: Final = 16


@dataclass(frozen=True, slots=True)
class Package:
    """A fetched package: name and version as in the archive, digest and path of its file."""

    name: str
    version: str
    sha256: str
    path: Path


class Archive:
    """The Debian suite of the guest, with its updates and security fixes as far as the machine's mirrors have them."""

    def __init__(self, tools: Tools, directory: Path, *, refresh: bool = False) -> None:
        """Keep lists and packages below `directory`; with `refresh` ask the mirror even for what is there."""
        self._tools = tools
        self.directory = directory
        self._refresh = refresh
        self._options: list[str] | None = None

    async def fetch(self, names: Sequence[str]) -> list[Package]:
        """Return the packages of these names, sorted; a metapackage stands for what its name begins with.

        Raises Internal with apt's words if one is not to be had.
        """
        wanted = sorted(names)
        key = hashlib.sha256("\0".join([SUITE, *wanted]).encode()).hexdigest()[:_DIGEST_CHARACTERS]
        directory = self.directory / key
        if self._refresh or not directory.exists():
            others = f" and {len(wanted) - 1} others" if len(wanted) > 1 else ""
            self._tools.say(f"fetching {wanted[0]}{others} from Debian {SUITE}")
            new = self.directory / f"{key}.new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            options = await self._updated()
            await self._tools.run("apt-get", *options, "download", *wanted, cwd=new)
            shutil.rmtree(directory, ignore_errors=True)
            new.rename(directory)
        packages = sorted((_package(path) for path in directory.glob("*.deb")), key=lambda each: each.name)
        if [package.name for package in packages] != wanted:
            raise Internal(f"{directory} does not hold {', '.join(wanted)}: remove it and try again")
        return packages

    async def member(self, metapackage: str, prefix: str) -> str:
        """Return the package on which a metapackage depends, whose name begins with `prefix`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        remembered = self.directory / f"{metapackage}.depends"
        if self._refresh or not remembered.exists():
            options = await self._updated()
            text = (await self._tools.run("apt-cache", *options, "depends", metapackage)).decode()
            names = [line.split()[1] for line in text.splitlines() if line.strip().startswith("Depends: ")]
            fitting = [name for name in names if name.startswith(prefix)]
            if not fitting:
                raise Internal(f"the package {metapackage} depends on no {prefix}*")
            remembered.write_text(fitting[0])
        return remembered.read_text()

    async def unpack(self, packages: Sequence[Package], directory: Path) -> None:
        """Unpack packages over each other; nothing of theirs is run."""
        directory.mkdir(parents=True, exist_ok=True)
        for package in packages:
            await self._tools.run("dpkg-deb", "--extract", package.path, directory)

    async def _updated(self) -> list[str]:
        """Return apt's options, once its lists are there."""
        if self._options is None:
            state = self.directory / "apt"
            for part in ("lists/partial", "archives/partial"):
                (state / part).mkdir(parents=True, exist_ok=True)
            (state / "sources.list").write_text("".join(f"{line}\n" for line in await self._sources()))
            (state / "status").touch()
            options = [
                "--quiet", "--quiet",
                f"-oDir::Etc::sourcelist={state}/sources.list", "-oDir::Etc::sourceparts=/dev/null",
                "-oDir::Etc::preferences=/dev/null", "-oDir::Etc::preferencesparts=/dev/null",
                f"-oDir::State={state}", f"-oDir::State::lists={state}/lists",
                f"-oDir::State::status={state}/status",
                f"-oDir::Cache={state}", f"-oDir::Cache::archives={state}/archives",
                "-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache=",
                # Root does not become _apt: that user may not reach the checkout.
                "-oAPT::Sandbox::User=root", "-oAPT::Architecture=amd64", "-oAPT::Update::Error-Mode=any",
                "-oAcquire::Languages=none", "-oAcquire::Retries=3",
            ]  # fmt: skip
            await self._tools.run("apt-get", *options, "update")
            self._options = options
        return self._options

    async def _sources(self) -> list[str]:
        """The machine's mirrors of Debian, whatever suites it takes from them itself."""
        listing = await self._tools.run(
            "apt-get", "indextargets", "--format", "$(COMPONENT) $(REPO_URI)", "Created-By: Packages"
        )
        repositories = [
            line.split()[1].rstrip("/") for line in listing.decode().splitlines() if line[:5] == "main "
        ]
        paths = {uri: urllib.parse.urlsplit(uri).path.rpartition("/")[2] for uri in repositories}
        main = next((uri for uri in repositories if paths[uri] == "debian"), None)
        security = next((uri for uri in repositories if paths[uri] == "debian-security"), None)
        if main is None:
            raise FailedPrecondition("apt's sources name no Debian mirror: add one with the component main")
        suites = [(main, SUITE), (main, f"{SUITE}-updates")]
        if security is not None:
            suites.append((security, f"{SUITE}-security"))
        return [f"deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main" for uri, suite in suites]


def _package(path: Path) -> Package:
    """Read what apt has put into a file's name: name_version_architecture.deb, the version's colon quoted."""
    name, version, _ = path.name.split("_")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Package(name, urllib.parse.unquote(version), digest, path)
