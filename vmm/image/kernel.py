"""Kernels for guests. Every kind is an ELF file that is entered through PVH: no boot loader, nothing to unpack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from common.errors import Internal
from vmm.image.loader import Module
from vmm.image.packages import Archive, Package
from vmm.image.tools import Tools

_ELF_MAGIC: Final = b"\x7fELF"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel: its file, what it calls itself, the modules that a guest loads, its own command line arguments."""

    file: Path
    release: str
    modules: tuple[Module, ...] = ()
    arguments: tuple[str, ...] = ()


class KernelSource(Protocol):
    """Where a kind of kernel comes from."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def programs(self) -> Mapping[str, str]:
        """What making it takes: programs and files of this machine, and the Debian packages that they are in."""

    async def fetch(self, archive: Archive) -> list[Package]:
        """Return the packages that it is made from."""

    async def make(self, tools: Tools, archive: Archive, packages: list[Package], work: Path) -> Kernel:
        """Make it in an empty directory. Raises Internal with the words of what failed."""


def check_elf(file: Path) -> None:
    """Raise Internal if a kernel is not an ELF file."""
    with file.open("rb") as content:
        if content.read(len(_ELF_MAGIC)) != _ELF_MAGIC:
            raise Internal(f"{file.name} is not an ELF file")
