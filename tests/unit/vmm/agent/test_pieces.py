"""What the agent finds out and decides without a machine."""

from __future__ import annotations

import json
import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from common.cgroup import Hierarchies
from common.errors import InvalidArgument
from common.oci.spec import Spec, parse_spec
from common.task.backend import ContainerRequest, PreparedContainer
from common.task.stdio import NO_STDIO
from vmm.agent import boot, clock, devices, network, service
from vmm.agent.identity import set_hostname
from vmm.agent.preparer import Directories, GuestPreparer, SharedMemory, pod_view
from vmm.agent.runtime import MountNamespaces


def test_mounts_come_after_what_they_lie_in() -> None:
    targets = [mount.target for mount in boot.MOUNTS]
    for index, target in enumerate(targets):
        inside = [other for other in targets if target.startswith(f"{other}/")]
        assert all(targets.index(other) < index for other in inside)


@pytest.mark.parametrize(
    ("command_line", "port"),
    [
        ("", 1025),
        ("quiet sandboxd.host_port=2000 ro", 2000),
        ("sandboxd.host_port=x", 1025),
        ("xsandboxd.host_port=3", 1025),
    ],
)
def test_the_kernels_command_line_may_name_the_hosts_port(command_line: str, port: int) -> None:
    assert boot.host_port(command_line) == port


def test_controllers_are_handed_down_as_far_as_there_are_any(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    boot.delegate_controllers(str(tmp_path))
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_the_hosts_clock_is_found_by_its_name(tmp_path: Path) -> None:
    assert clock.find_ptp_device(str(tmp_path / "none")) is None
    for name, text in (("ptp0", "e1000"), ("ptp1", "KVM virtual PTP\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clock_name").write_text(text)
    assert clock.find_ptp_device(str(tmp_path)) == "/dev/ptp1"


def test_a_disk_is_found_by_its_serial_and_by_nothing_else(tmp_path: Path) -> None:
    for name, serial, numbers in (("null", "other", "1:3"), ("zero", "volume-1\n", "1:5")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "serial").write_text(serial)
        (tmp_path / name / "dev").write_text(numbers)
    assert devices.look_for_disk("volume-1", str(tmp_path)) == ("/dev/zero", 1, 5)
    assert devices.look_for_disk("volume", str(tmp_path)) is None
    assert devices.look_for_disk("volume-2", str(tmp_path)) is None


def test_memory_that_can_be_plugged_is_counted_in_blocks(tmp_path: Path) -> None:
    assert devices.plugged_memory_bytes(str(tmp_path)) == 0
    (tmp_path / "block_size_bytes").write_text("8000000\n")
    for name, state in (("memory0", "online"), ("memory1", "offline"), ("memory12", "online")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state").write_text(state)
    (tmp_path / "memory_hotplug").mkdir()
    assert devices.plugged_memory_bytes(str(tmp_path)) == 2 * 0x8000000


@pytest.mark.parametrize("name", ["eth0", "net1", "a" * 15])
def test_interfaces_may_be_called_so(name: str) -> None:
    assert network.check_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "..", ".", "lo", "a b", "a:b", "eth%d", "é", "a\n"])
def test_interfaces_may_not_be_called_so(name: str) -> None:
    with pytest.raises(InvalidArgument):
        network.check_name(name)


@pytest.mark.parametrize("name", ["x" * 65, "a\0b"])
def test_a_host_name_that_the_kernel_refuses_is_refused_first(name: str) -> None:
    with pytest.raises(InvalidArgument):
        set_hostname(name)


def test_figures_are_read_from_proc() -> None:
    assert service.meminfo("MemTotal:  1000 kB\nHugePages_Total: 3\nodd\n") == {
        "MemTotal": 1024000,
        "HugePages_Total": 3,
    }
    assert service.busy_ticks("cpu  1 2 3 1000 2000 4 5 6 7 8\ncpu0 9 9 9") == 1 + 2 + 3 + 4 + 5 + 6
    assert service.busy_ticks("") == 0


# -- preparing a container -------------------------------------------------------------------------


@pytest.fixture
def namespaces() -> MountNamespaces:
    return MountNamespaces()


@pytest.fixture
def preparer(tmp_path: Path, namespaces: MountNamespaces) -> GuestPreparer:
    shm = SharedMemory("/run/shm")
    (tmp_path / "shares").mkdir()
    return GuestPreparer(
        lambda: pod_view("/run/pod", shm, None),
        shm,
        Directories(f"{tmp_path}/tasks", f"{tmp_path}/shares", "/pod"),
        Hierarchies({}),
        True,
        namespaces,
    )


def adjusted(preparer: GuestPreparer, **changes: object) -> Spec:
    linux = {
        "cgroupsPath": "/kubepods/x",
        "mountLabel": "label",
        "resources": {"cpu": {"shares": 2, "cpus": "0-3", "mems": "0"}, "memory": {"limit": 5}},
    }
    process = {"args": ["x"], "apparmorProfile": "cri", "selinuxLabel": "label", "cwd": "/"}
    document = {"process": process, "root": {"path": "rootfs"}, "linux": linux, **changes}
    spec = parse_spec(json.dumps(document).encode(), "a test")
    preparer.adjust(ContainerRequest("c1", "/b", (), NO_STDIO), spec, AsyncExitStack())
    return spec


def test_what_is_about_the_host_is_taken_out(preparer: GuestPreparer) -> None:
    spec = adjusted(preparer)
    assert spec["linux"] == {
        "cgroupsPath": "/pod/c1",
        "resources": {"cpu": {"shares": 2}, "memory": {"limit": 5}},
    }
    assert spec["process"] == {"args": ["x"], "cwd": "/"}


def test_programs_of_the_host_are_refused(preparer: GuestPreparer) -> None:
    with pytest.raises(InvalidArgument, match="hooks"):
        adjusted(preparer, hooks={"createRuntime": [{"path": "/x"}]})
    assert adjusted(preparer, hooks={"poststop": []})


@pytest.mark.parametrize(
    "bundle", ["{shares}/../shares/a", "/etc", "{shares}", "relative", "{shares}/link/x", "{shares}x/a"]
)
def test_a_bundle_must_lie_in_a_share(preparer: GuestPreparer, tmp_path: Path, bundle: str) -> None:
    shares = tmp_path / "shares"
    (shares / "link").symlink_to("/etc")
    with pytest.raises(InvalidArgument, match="not in a share"):
        preparer.check_request(ContainerRequest("c", bundle.format(shares=shares), (), NO_STDIO))
    preparer.check_request(ContainerRequest("c", f"{shares}/pod/c", (), NO_STDIO))


def test_a_pods_namespaces_are_the_machines() -> None:
    shm = SharedMemory("/run/shm")
    view = pod_view("/run/pod", shm, "/proc/7/ns/pid")
    assert view.namespaces == {"network": None, "ipc": None, "uts": None, "pid": "/proc/7/ns/pid"}
    assert view.files["/etc/hosts"] == "/run/pod/hosts"
    assert "pid" not in pod_view("/run/pod", shm, None).namespaces


async def test_a_namespace_ends_though_the_share_is_lost(
    preparer: GuestPreparer, namespaces: MountNamespaces, tmp_path: Path
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    namespaces.hold("c1", os.getpid())
    rootfs = f"{tmp_path}/shares/lost/c1/rootfs"
    container = PreparedContainer(f"{tmp_path}/tasks/c1", rootfs, (0, 0), "", False, False, False, False)
    with pytest.raises(FileNotFoundError, match="shares/lost"):
        await preparer.release(container)
    assert set(os.listdir("/proc/self/fd")) == before
