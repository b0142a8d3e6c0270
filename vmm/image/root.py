"""The guest's root file system: an interpreter, the agent with what it imports, an OCI runtime, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import FailedPrecondition, Internal
from vmm.image.packages import Package
from vmm.image.tools import Tools

PYTHON: Final = "3.11"
PACKAGES: Final = (
    "crun",
    "libc6",
    "libcap2",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libseccomp2",
    "libstdc++6",
    "libsystemd0",
    "libyajl2",
    "libzstd1",
    "python3.11-minimal",
    "zlib1g",
)
DEBUG_PACKAGES: Final = ("busybox-static",)
WHEEL: Final = ("protobuf", "7.36.2", "89f23aa53c24553a2416fd4fd1ec06f74fa42b14b546d8883128813f775bbfd2")

FILE_SYSTEM: Final = "erofs"
INIT: Final = "/usr/bin/python3"
DEBUG_INIT: Final = "/debug"
# Isolated, without site-packages, never writing bytecode.
INIT_ARGUMENTS: Final = ("-I", "-S", "-B", "/agent.pyc")

_LIBRARIES: Final = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_LOADER: Final = "ld-linux-x86-64.so.2"
_STDLIB: Final = f"usr/lib/python{PYTHON}"
_PROGRAMS: Final = {f"usr/bin/python{PYTHON}": "usr/bin/python3", "usr/bin/crun": "usr/bin/crun"}
_DIRECTORIES: Final = (
    "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "var",
    # Without it the interpreter warns at every start.
    f"{_STDLIB}/lib-dynload",
)  # fmt: skip
# As Debian's own merged /usr.
_LINKS: Final = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}
# The agent stays the first process. A console is nobody's terminal: the shell has no job control.
_DEBUG_START: Final = f"""\
#!/bin/sh
while true; do sh -i; done <>/dev/console >&0 2>&0 &
exec {INIT} "$@"
"""
_UUID: Final = "73616e64-626f-7864-0000-000000000001"
_FOUND: Final = re.compile(r"^\s*([^\s/]+) => (/\S+) \(0x", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Agent:
    """The program that the guest runs: its module, the directory that it is in, and what of that directory it may
    import (files and directories).

    `at_start` names the modules that it loads at once, for its bundle. `stdlib` and `wheel` are directories of modules
    that take the place of the standard library's and of the wheel's, below the same directory.
    """

    module: str
    directory: Path
    parts: tuple[str, ...]
    at_start: tuple[str, ...] = ()
    stdlib: str = ""
    wheel: str = ""

    def digest(self) -> str:
        """Return the digest of the program's sources."""
        files: list[str] = []
        for part in self.parts:
            path = self.directory / part
            inside = path.rglob("*.py") if path.is_dir() else [path]
            files += [str(file.relative_to(self.directory)) for file in inside]
        return digest(self.directory, sorted(files))


@dataclass(frozen=True, slots=True)
class Sources:
    """What a root file system is made of: unpacked Debian packages, a wheel, the agent."""

    debian: Path
    wheel: Path
    agent: Agent
    debug: bool = False


def digest(directory: Path, files: Sequence[str]) -> str:
    """Return the digest of some files of a directory, by name and content."""
    total = hashlib.sha256()
    for name in files:
        total.update(f"{name}\0{hashlib.sha256((directory / name).read_bytes()).hexdigest()}\0".encode())
    return total.hexdigest()


async def fetch_wheel(tools: Tools, downloads: Path) -> Package:
    """Return the wheel for the guest's interpreter. Raises FailedPrecondition if the index has another file for it."""
    name, version, sha256 = WHEEL
    place = downloads / f"{name}-{version}"
    if not list(place.glob("*.whl")):
        tools.say(f"fetching {name} {version}")
        await tools.run(
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
            "--python-version", PYTHON, "--implementation", "cp", "--platform", "manylinux2014_x86_64",
            "--dest", place, f"{name}=={version}",
        )  # fmt: skip
    (path,) = place.glob("*.whl")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise FailedPrecondition(f"{path} is not the file that this version was tested with: remove it")
    return Package(name, version, sha256, path)


async def assemble(tools: Tools, sources: Sources, work: Path) -> tuple[Path, list[str]]:
    """Lay out the root file system below `work` and return its directory and the names of its Python modules."""
    tree = work / "root"
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True)
    for link, place in _LINKS.items():
        (tree / place).mkdir(parents=True, exist_ok=True)
        (tree / link).symlink_to(place)
    for source, place in _PROGRAMS.items():
        shutil.copyfile(sources.debian / source, tree / place)
        (tree / place).chmod(0o755)
    modules = await _python(tools, sources, tree, work)
    await _libraries(tools, sources.debian, tree)
    if sources.debug:
        _shell(sources.debian, tree)
    return tree, modules


async def pack(tools: Tools, tree: Path, image: Path) -> None:
    """Write an image of a directory, owned by root, of the time 0: the same bytes for the same content."""
    await tools.run("mkfs.erofs", "--quiet", "-T0", f"-U{_UUID}", "--all-root", image, tree)


async def _python(tools: Tools, sources: Sources, tree: Path, work: Path) -> list[str]:
    unpacked = work / "wheel"
    with zipfile.ZipFile(sources.wheel) as archive:
        archive.extractall(unpacked)
    # Packages without such a file are searched for along the whole path at every start.
    for directory in unpacked.rglob("*/"):
        (directory / "__init__.py").touch()
    debian, agent = sources.debian, sources.agent
    program = work / "agent"
    _copy_parts(agent, program)
    search = [program, unpacked, debian / _STDLIB, debian / _STDLIB / "lib-dynload"]
    if agent.wheel:
        shutil.copytree(program / agent.wheel, unpacked, dirs_exist_ok=True)
    if agent.stdlib:
        search.insert(0, program / agent.stdlib)
    python = [*_on_host(debian, f"usr/bin/python{PYTHON}"), "-s", "-S", "-B", "-P"]
    environment = {"PYTHONHOME": str(debian / "usr")}
    collect = Path(__file__).with_name("guest_modules.py")
    output = await tools.run(*python, collect, agent.module, tree / _STDLIB, *search, env=environment)
    if agent.at_start:
        bundle = Path(__file__).with_name("guest_bundle.py")
        modules = ",".join(agent.at_start)
        await tools.run(
            *python, bundle, tree / "agent.bundle", f"/{_STDLIB}", modules, *search, env=environment
        )
    entry = tree / _STDLIB / Path(*agent.module.split("."))
    shutil.copyfile(f"{entry}.pyc", tree / "agent.pyc")
    names: list[str] = json.loads(output)
    return names


def _copy_parts(agent: Agent, target: Path) -> None:
    """Copy what the agent may import, away from what else its directory has: the packages of another interpreter."""
    for part in agent.parts:
        source, place = agent.directory / part, target / part
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)


async def _libraries(tools: Tools, debian: Path, tree: Path) -> None:
    """Copy the shared libraries that the programs and extension modules of the tree are linked with."""
    directory = tree / "usr/lib/x86_64-linux-gnu"
    directory.mkdir(parents=True)
    loader = tree / "usr/lib64" / _LOADER
    shutil.copyfile(debian / _LIBRARIES[0] / _LOADER, loader)
    loader.chmod(0o755)
    linked = [tree / place for place in _PROGRAMS.values()] + sorted(tree.rglob("*.so"))
    for file in linked:
        listing = (await tools.run(*_on_host(debian, "--list"), file)).decode()
        for name, found in _FOUND.findall(listing):
            if not Path(found).is_relative_to(debian):
                raise Internal(f"{file.name} needs {name}, which is in none of the packages")
            shutil.copyfile(found, directory / name)


def _on_host(debian: Path, program: str) -> Sequence[str | Path]:
    """A command line that runs a program of the unpacked packages with their libraries, or their loader's option."""
    path = ":".join(str(debian / part) for part in _LIBRARIES)
    loader = debian / _LIBRARIES[0] / _LOADER
    return [loader, "--library-path", path, program if program.startswith("-") else debian / program]


def _shell(debian: Path, tree: Path) -> None:
    busybox = tree / "usr/bin/busybox"
    shutil.copyfile(debian / "bin/busybox", busybox)
    busybox.chmod(0o755)
    (tree / "usr/bin/sh").symlink_to("busybox")
    start = tree / DEBUG_INIT.lstrip("/")
    start.write_text(_DEBUG_START)
    start.chmod(0o755)
