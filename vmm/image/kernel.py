"""Debian's cloud kernel for guests: unpacked, so that it starts without doing that itself, and the modules it needs."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from common.errors import Internal
from vmm.image.loader import Module
from vmm.image.tools import Tools

METAPACKAGE: Final = "linux-image-cloud-amd64"
PACKAGE_PREFIX: Final = "linux-image-"

# In the order in which a boot needs them; what they depend on comes before them. The root first.
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
)
# A machine without that device refuses the module.
_OPTIONAL: Final = frozenset({"ptp_kvm"})

# The boot protocol's header: Documentation/arch/x86/boot.rst of the kernel.
_SETUP_SECTORS_AT: Final = 0x1F1
_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_PAYLOAD_AT: Final = 0x248
_SECTOR: Final = 512
_PAYLOAD: Final = struct.Struct("<II")
# The payload ends with the size of what is packed.
_SIZE: Final = struct.Struct("<I")

_UNPACKERS: Final = {
    b"\x02\x21\x4c\x18": ("lz4", "-d", "-c"),
    b"\x28\xb5\x2f\xfd": ("zstd", "-d", "-c", "-q"),
    b"\xfd7zXZ": ("xz", "-d", "-c"),
    b"\x1f\x8b": ("gzip", "-d", "-c"),
}
_ELF: Final = b"\x7fELF"
_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")


async def unpacked(tools: Tools, image: Path, target: Path) -> None:
    """Write the ELF file that is packed in a bzImage. Raises Internal if it is not one, or packed in an unknown way."""
    payload = packed_payload(image.read_bytes())
    for magic, command in _UNPACKERS.items():
        if payload.startswith(magic):
            packed = target.with_suffix(".packed")
            packed.write_bytes(payload)
            await tools.run(*command, packed, output=target)
            packed.unlink()
            break
    else:
        raise Internal(f"the kernel is packed in an unknown way: it begins with {payload[:6].hex()}")
    with target.open("rb") as file:
        if file.read(len(_ELF)) != _ELF:
            raise Internal("the kernel that was unpacked is not an ELF file")


def packed_payload(image: bytes) -> bytes:
    """Return what a bzImage unpacks when it starts. Raises Internal if it is not one."""
    if image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        raise Internal("the kernel is not a bzImage")
    sectors = image[_SETUP_SECTORS_AT] or 4
    offset, size = _PAYLOAD.unpack_from(image, _PAYLOAD_AT)
    start = (sectors + 1) * _SECTOR + offset
    payload = image[start : start + size]
    if len(payload) != size or size < _SIZE.size:
        raise Internal("the kernel's payload is cut off")
    return payload[: -_SIZE.size]


def modules(directory: Path, names: Sequence[str] = MODULES) -> list[Module]:
    """Return modules of a kernel's tree (usr/lib/modules/RELEASE) in an order in which they can be loaded.

    Raises Internal naming one that the kernel does not have.
    """
    files = {_plain(path.stem): path for path in sorted(directory.rglob("*.ko"))}
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


def _dependencies(module: bytes) -> Iterable[str]:
    found = _DEPENDS.search(module)
    return [_plain(name) for name in found[1].decode().split(",") if name] if found else []


def _plain(name: str) -> str:
    """A module's name as the kernel itself writes it."""
    return name.replace("-", "_")
