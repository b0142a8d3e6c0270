"""Debian's own kernel for virtual machines: nothing is compiled, and what are modules in it the guest loads at boot."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.errors import Internal
from vmm.image.kernel import Kernel, check_elf
from vmm.image.loader import Module
from vmm.image.packages import Archive, Package
from vmm.image.tools import Tools

_METAPACKAGE: Final = "linux-image-cloud-amd64"
_PREFIX: Final = "linux-image-"

# In the order in which a boot needs them; what they depend on comes before them.
MODULES: Final = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "erofs",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "ptp_kvm",
    "virtio_net",
    "virtiofs",
    "overlay",
    # For containers that may make one: nothing is loaded after the boot, and it takes a hundredth of that.
    "bridge",
)
# Without hardware virtualization there is no such device, and the module refuses.
_OPTIONAL: Final = frozenset({"ptp_kvm"})

# Each algorithm would be compared with known answers before its first use: a fifth of a second.
_ARGUMENTS: Final = ("cryptomgr.notests",)

# The boot protocol's header, Documentation/arch/x86/boot.rst of the kernel: where the sectors of real mode are
# counted, its magic number, where the packed kernel begins and how long it is. That ends with the unpacked size.
_SECTORS_AT: Final = 0x1F1
_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_PAYLOAD_AT, _PAYLOAD = 0x248, struct.Struct("<II")
_SECTOR_BYTES, _SIZE_BYTES = 512, 4
_LZ4_MAGIC: Final = b"\x02\x21\x4c\x18"

_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")


class CloudKernel:
    """The kernel package that Debian recommends for clouds."""

    name = "cloud"
    programs: Final = {"lz4": "lz4"}

    async def fetch(self, archive: Archive) -> list[Package]:
        """Return the one package."""
        return await archive.fetch([await archive.member(_METAPACKAGE, _PREFIX)])

    async def make(self, tools: Tools, archive: Archive, packages: list[Package], work: Path) -> Kernel:
        """Unpack the package and the kernel in it."""
        release = packages[0].name.removeprefix(_PREFIX)
        tools.say(f"unpacking Debian's kernel {release}")
        await archive.unpack(packages, work)
        packed = work / "packed"
        packed.write_bytes(packed_payload((work / f"boot/vmlinuz-{release}").read_bytes()))
        file = work / "vmlinux"
        await tools.run("lz4", "-d", "-c", packed, output=file)
        check_elf(file)
        modules = loadable(work / "lib/modules" / release, MODULES)
        return Kernel(file, release, tuple(modules), _ARGUMENTS)


def packed_payload(image: bytes) -> bytes:
    """Return what a bzImage unpacks when it starts. Raises Internal if that is not there, or not packed with LZ4."""
    if image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        raise Internal("the kernel is not a bzImage")
    # 0 stands for 4, for the oldest boot loaders.
    sectors = image[_SECTORS_AT] or 4
    offset, size = _PAYLOAD.unpack_from(image, _PAYLOAD_AT)
    start = (sectors + 1) * _SECTOR_BYTES + offset
    payload = image[start : start + size]
    if len(payload) != size or not payload.startswith(_LZ4_MAGIC):
        raise Internal("the kernel is cut off or not packed with LZ4")
    return payload[:-_SIZE_BYTES]


def loadable(directory: Path, names: Sequence[str]) -> list[Module]:
    """Return modules of a kernel's tree (lib/modules/RELEASE) in an order in which they can be loaded.

    Raises Internal naming one that the kernel does not have.
    """
    files = {_plain(path.stem): path for path in directory.rglob("*.ko")}
    ordered: dict[str, Module] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        if name not in files:
            raise Internal(f"the kernel {directory.name} has no module {name}")
        content = files[name].read_bytes()
        for other in _dependencies(content):
            add(other)
        ordered[name] = Module(name, content, optional=name in _OPTIONAL)

    for name in names:
        add(name)
    return list(ordered.values())


def _dependencies(module: bytes) -> list[str]:
    found = _DEPENDS.search(module)
    return [_plain(name) for name in found[1].decode().split(",") if name] if found else []


def _plain(name: str) -> str:
    """A module's name as the kernel itself writes it."""
    return name.replace("-", "_")
