"""Debian's kernel: what is packed in it is found, and its modules are put into an order in which they load."""

import struct
from pathlib import Path

import pytest

from common.errors import Internal
from vmm.image.cloud_kernel import loadable, packed_payload

LZ4 = b"\x02\x21\x4c\x18"


def bzimage(payload: bytes, *, sectors: int = 3, magic: bytes = b"HdrS") -> bytes:
    """Return an image as the boot protocol lays it out, with 16 bytes of program before the payload."""
    header = bytearray((max(sectors, 4) + 1) * 512) if sectors == 0 else bytearray((sectors + 1) * 512)
    header[0x1F1] = sectors
    header[0x202:0x206] = magic
    struct.pack_into("<II", header, 0x248, 16, len(payload))
    return bytes(header) + b"\x90" * 16 + payload + b"what follows"


@pytest.mark.parametrize("sectors", [0, 3, 40])
def test_the_payload_is_found_less_its_size(sectors: int) -> None:
    image = bzimage(LZ4 + b"packed" + b"\x07\0\0\0", sectors=sectors)

    assert packed_payload(image) == LZ4 + b"packed"


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(Internal, match="not a bzImage"):
        packed_payload(bzimage(LZ4, magic=b"none"))


@pytest.mark.parametrize(
    "image",
    [bzimage(b"\x1f\x8b gzip"), bzimage(LZ4 + b"cut" * 9)[:-30], bzimage(b"")],
    ids=["gzip", "cut", "empty"],
)
def test_a_payload_that_cannot_be_unpacked_is_refused(image: bytes) -> None:
    with pytest.raises(Internal, match="cut off or not packed with LZ4"):
        packed_payload(image)


def write_modules(directory: Path, dependencies: dict[str, str]) -> None:
    for name, depends in dependencies.items():
        path = directory / "kernel" / name[0] / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"\x7fELF\0license=GPL\0depends={depends}\0name={name}\0".encode())


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    write_modules(
        tmp_path, {"net": "bus,fail-over", "disk": "bus", "bus": "ring", "ring": "", "fail-over": ""}
    )

    ordered = loadable(tmp_path, ["disk", "net", "fail_over"])

    assert [module.name for module in ordered] == ["ring", "bus", "disk", "fail_over", "net"]
    assert ordered[0].content.endswith(b"name=ring\0")


def test_a_module_that_only_real_machines_have_may_refuse(tmp_path: Path) -> None:
    write_modules(tmp_path, {"ptp_kvm": "", "virtio_pci": ""})

    assert [module.optional for module in loadable(tmp_path, ["virtio_pci", "ptp_kvm"])] == [False, True]


def test_a_module_that_is_missing_is_named(tmp_path: Path) -> None:
    write_modules(tmp_path, {"disk": "bus"})

    with pytest.raises(Internal, match="has no module bus"):
        loadable(tmp_path, ["disk"])
