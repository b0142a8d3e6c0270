"""QEMU under KVM: the node's processor is emulated, and virtualizes nonetheless."""

from __future__ import annotations

import pytest

from tests.guest_image import guest_image
from tests.node.conftest import Inside
from tests.node.template import Node
from tests.vm.qemu import image
from vmm.image.manifest import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# What these find does not depend on what executes the guest.
LEFT_OUT = "any_step"

PODS = "tests/engine/test_qemu.py"
ABOUT_MACHINES = (
    "kernel or network_is or exec_returns or large_output or input_arrives or container_out_of_memory or volumes"
    " or leaves_nothing"
)
OF_STREAMS = "killed or stay_whole"


@pytest.fixture(scope="module")
def node_with_engine(node: Node) -> None:
    """The node has what these tests look for in a checkout."""
    node.bring_engine([image(), load(guest_image())])


def test_machines_run_under_kvm_with_vsock_by_the_kernel(node_with_engine: None, inside: Inside) -> None:
    assert inside("tests/node/inside/test_qemu.py", "-k", f"not {LEFT_OUT}") > 25


def test_pods_start_under_kvm(node_with_engine: None, inside: Inside) -> None:
    assert inside(PODS, "-k", ABOUT_MACHINES, in_root_cgroup=True) >= 8


def test_streams_of_the_kernels_vsock_outlive_the_daemon(node_with_engine: None, inside: Inside) -> None:
    assert inside("tests/chaos/test_qemu.py", "-k", OF_STREAMS, in_root_cgroup=True) == 2
