"""Containers in cgroups that systemd makes, and in ones that the runtime makes itself: limits, stats, ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proto.gen.runtime.v1 import api_pb2 as api
from proto.gen.runtime.v1 import service_pb2 as pb
from tests.chaos.kubelet import Kubelet
from tests.engine.cri import CONTAINER, EXITED, RUNNING, container_config, matching, pod_config
from tests.engine.engine import OURS
from tests.engine.namespaces import wait_until
from tests.node.inside.systemd import Service, systemctl

ROOT = Path("/sys/fs/cgroup")
MIB = 1 << 20
HOG = ("dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1")
BUSY = ("sh", "-c", "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; touch /tmp/done; exec sleep 1000000")


class Driver:
    """Where a kubelet with one of the two cgroup drivers puts its pods."""

    def __init__(self, name: str) -> None:
        self.is_systemd = name == "systemd"
        self.parent = "kubepods-burstable-podtest.slice" if self.is_systemd else "/kubepods/burstable/podtest"
        self._directory = (
            ROOT / "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podtest.slice"
            if self.is_systemd
            else ROOT / self.parent.lstrip("/")
        )

    def make(self) -> None:
        """Make the pod's cgroup, as the kubelet does."""
        if self.is_systemd:
            systemctl("start", self.parent)
            return
        self._directory.mkdir(parents=True)
        for directory in (
            ROOT,
            *reversed(self._directory.relative_to(ROOT).parents),
            ROOT / self.parent.lstrip("/"),
        ):
            (ROOT / directory / "cgroup.subtree_control").write_text("+cpu +memory +pids +io")

    def remove(self) -> None:
        """Take it away again, which fails if anything is left in it."""
        if self.is_systemd:
            systemctl("stop", self.parent)
            wait_until(lambda: not self._directory.exists(), timeout_s=60, what=f"the end of {self.parent}")
            return
        for directory in (self._directory, *self._directory.parents):
            if directory == ROOT:
                return
            directory.rmdir()

    def cgroup(self, container: str) -> Path:
        """The container's cgroup."""
        return self._directory / (f"cri-containerd-{container}.scope" if self.is_systemd else container)

    def left(self) -> list[str]:
        """What there is below the pod's cgroup, and of scopes."""
        units = systemctl("list-units", "--all", "--plain", "--no-legend", "cri-containerd-*").splitlines()
        return [*units, *(str(path) for path in self._directory.iterdir() if path.is_dir())]


@pytest.fixture(params=["cgroupfs", "systemd"])
def driver(service: Service, request: pytest.FixtureRequest) -> Iterator[Driver]:
    driver = Driver(request.param)
    driver.make()
    yield driver
    driver.remove()


@pytest.fixture
def pod(kubelet: Kubelet, driver: Driver) -> Iterator[tuple[str, api.PodSandboxConfig]]:
    """A pod in the driver's cgroup, of which afterwards nothing is left there."""
    config = pod_config(cgroup_parent=driver.parent, namespaces=api.NamespaceOption(pid=CONTAINER))
    pod_id = kubelet.cri.run_pod(config, OURS)
    yield pod_id, config
    kubelet.remove_all_pods()
    assert driver.left() == []


Run = Callable[..., str]


@pytest.fixture
def run(kubelet: Kubelet, pod: tuple[str, api.PodSandboxConfig]) -> Run:
    """Start a container of the pod with a limit on its memory, and return its id."""
    serial = itertools.count()

    def run(*command: str, memory_mib: int = 64) -> str:
        pod_id, config = pod
        linux = matching(config)
        linux.resources.MergeFrom(
            api.LinuxContainerResources(
                memory_limit_in_bytes=memory_mib * MIB, cpu_period=100_000, cpu_quota=50_000, cpu_shares=512
            )
        )
        container_name = f"c{next(serial)}"
        container = kubelet.cri.create(
            pod_id, container_config(command, name=container_name, linux=linux), config
        )
        kubelet.cri.start(container)
        return container

    return run


def ended(kubelet: Kubelet, container: str) -> pb.ContainerStatus:
    wait_until(
        lambda: kubelet.cri.container(container).state == EXITED, timeout_s=60, what="its end", interval_s=0.1
    )
    return kubelet.cri.container(container)


def limit(cgroup: Path, name: str) -> str:
    return (cgroup / name).read_text().strip()


def test_limits_hold_where_the_engine_has_asked_for_them_and_can_be_changed(
    kubelet: Kubelet, driver: Driver, run: Run
) -> None:
    container = run("sleep", "1000000")
    cgroup = driver.cgroup(container)
    if driver.is_systemd:
        assert systemctl("show", "--value", "--property=ActiveState", cgroup.name) == "active"
        assert systemctl("show", "--value", "--property=Slice", cgroup.name) == driver.parent
        assert systemctl("show", "--value", "--property=MemoryMax", cgroup.name) == str(64 * MIB)
    assert limit(cgroup, "memory.max") == str(64 * MIB)
    assert limit(cgroup, "cpu.max") == "50000 100000"

    resources = api.LinuxContainerResources(
        memory_limit_in_bytes=96 * MIB, cpu_period=100_000, cpu_quota=70_000
    )
    kubelet.cri.runtime.UpdateContainerResources(
        pb.UpdateContainerResourcesRequest(container_id=container, linux=resources), timeout=60
    )
    assert limit(cgroup, "memory.max") == str(96 * MIB)
    assert limit(cgroup, "cpu.max") == "70000 100000"
    # What systemd does not know it would undo when it next looks.
    systemctl("daemon-reload")
    assert limit(cgroup, "memory.max") == str(96 * MIB)
    assert kubelet.cri.container(container).state == RUNNING


def test_a_container_out_of_memory_says_so_also_to_a_later_daemon(
    service: Service, kubelet: Kubelet, run: Run
) -> None:
    status = ended(kubelet, run(*HOG, memory_mib=32))
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    later = run("sh", "-c", f"until [ -e /tmp/now ]; do sleep 0.2; done; exec {' '.join(HOG)}", memory_mib=32)
    service.replace(service.kill_daemon)
    assert kubelet.insist(lambda: kubelet.cri.exec(later, ["touch", "/tmp/now"])).exit_code == 0
    status = ended(kubelet, later)
    assert status.reason == "OOMKilled"


def test_stats_are_those_of_the_container(kubelet: Kubelet, driver: Driver, run: Run) -> None:
    container = run(*BUSY)
    wait_until(
        lambda: kubelet.cri.exec(container, ["test", "-e", "/tmp/done"]).exit_code == 0,
        timeout_s=60,
        what="an end of the work",
        interval_s=0.2,
    )
    stats = kubelet.cri.stats(container)
    cgroup = driver.cgroup(container)
    counted = dict(line.split() for line in (cgroup / "cpu.stat").read_text().splitlines())
    assert 0 < stats.cpu.usage_core_nano_seconds.value <= int(counted["usage_usec"]) * 1000
    assert 0 < stats.memory.working_set_bytes.value <= 64 * MIB
    assert stats.memory.available_bytes.value <= 64 * MIB


def test_a_pod_that_is_removed_leaves_nothing_in_its_cgroup(
    kubelet: Kubelet, driver: Driver, pod: tuple[str, api.PodSandboxConfig], run: Run
) -> None:
    container = run("sh", "-c", "sleep 1000000 & sleep 1000000")
    assert driver.cgroup(container).is_dir()
    kubelet.cri.remove_pod(pod[0])
    assert driver.left() == []
    assert systemctl("list-units", "--failed", "--plain", "--no-legend") == ""
