"""QEMU machines under KVM: the node's processor is emulated, and virtualizes nonetheless."""

from __future__ import annotations

import io
import tarfile

import pytest

from tests.node.conftest import Inside
from tests.node.template import Node
from tests.vm.qemu import image
from vmm.image.manifest import GuestImage

TEST = "tests/node/inside/test_qemu.py"
# What these find does not depend on what executes the guest.
LEFT_OUT = "any_step"


@pytest.mark.timeout(1800)
def test_machines_run_under_kvm_with_vsock_by_the_kernel(node: Node, inside: Inside) -> None:
    node.upload(_archive(image()), "/opt/node/guest")
    assert inside(TEST, "-k", f"not {LEFT_OUT}") > 25


def _archive(guest: GuestImage) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        files = [guest.kernel, guest.root, *([guest.ramdisk] if guest.ramdisk else [])]
        for path in (guest.directory / f"{guest.manifest.name}.json", *files):
            archive.add(path, path.name)
    return buffer.getvalue()
