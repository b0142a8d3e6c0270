"""The daemon of VM pods fails or dies at each step of what it does."""

from collections.abc import Iterator

import grpc
import pytest

from common.failpoints import Failpoint as F
from proto.gen.runtime.v1 import service_pb2 as pb
from tests.chaos.conftest import running
from tests.chaos.trial import Trial
from tests.engine.cri import container_config, pod_config
from tests.engine.engine import OURS_IN_QEMU
from tests.engine.handlers import QEMU
from tests.engine.qemu import start_vm_container, write_config
from tests.engine.test_pods import ended, shell

START = (
    F.SANDBOX_STARTING,
    F.SANDBOX_CGROUP_MADE,
    F.SANDBOX_SHARE_MADE,
    F.SANDBOX_NETWORK_ATTACHED,
    F.MACHINE_RECORDED,
    F.MACHINE_HELD,
    F.MACHINE_BACKED,
    F.MACHINE_RUNNING,
    F.MACHINE_STARTED,
    F.SANDBOX_MACHINE_STARTED,
    F.SANDBOX_GUEST_ANNOUNCED,
    F.SANDBOX_GUEST_CONFIGURED,
    F.SANDBOX_LISTENING,
    F.SANDBOX_DESCRIPTORS_KEPT,
)
STOP = (
    F.SANDBOX_STOPPING,
    F.MACHINE_STOPPING,
    F.MACHINE_STOPPED,
    F.SANDBOX_CONTAINERS_KILLED,
    F.SANDBOX_STOPPED,
)
CREATE = (
    F.CONTAINER_RECORDED,
    F.CONTAINER_ROOTFS_MOUNTED,
    F.CONTAINER_VOLUMES_MOUNTED,
    F.CONTAINER_SPEC_WRITTEN,
    F.OUTPUT_OPENED,
    F.GUEST_ASKED,
    F.CONTAINER_STREAMS_OPENED,
    F.LINK_KEPT,
    F.CONTAINER_MADE,
    F.CONTAINER_CREATED,
    F.CONTAINER_STARTING,
    F.CONTAINER_RUNNING,
    F.CONTAINER_STARTED,
)
DELETE = (F.CONTAINER_DELETING, F.CONTAINER_UNMADE, F.CONTAINER_DELETED)
EXEC = (
    F.EXEC_RECORDED,
    F.OUTPUT_OPENED,
    F.GUEST_ASKED,
    F.EXEC_STREAMS_OPENED,
    F.EXEC_RUNNING,
    F.EXEC_STARTED,
    F.EXEC_EXITED,
    F.EXEC_EXIT_RECORDED,
    F.EXEC_DELETED,
)


@pytest.fixture(scope="module")
def trial(vm_parts: None, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """An engine whose daemon of VM pods the tests of this module arm."""
    with running(request.session, QEMU) as trial:
        trial.start(config=write_config(trial.directory))
        # The first pod leaves what belongs to the engine.
        start_vm_container(trial.engine.cri)
        trial.remove_all_pods()
        yield trial


@pytest.fixture
def before(trial: Trial) -> set[str]:
    return trial.remains()


@pytest.mark.parametrize("point", START, ids=str)
def test_a_start_that_fails_leaves_nothing_behind(trial: Trial, before: set[str], point: F) -> None:
    trial.arm(f"{point}=raise")
    with pytest.raises(grpc.RpcError, match=str(point)):
        trial.engine.cri.run_pod(pod_config(host_network=False), OURS_IN_QEMU)
    trial.arm("")
    trial.expect_nothing_more_than(before)


@pytest.mark.slow
@pytest.mark.parametrize("point", START, ids=str)
def test_a_daemon_that_dies_in_a_start_leaves_nothing_behind(
    trial: Trial, before: set[str], point: F
) -> None:
    starts = trial.starts
    trial.arm(f"{point}=kill")
    with pytest.raises(grpc.RpcError):
        trial.engine.cri.run_pod(pod_config(host_network=False), OURS_IN_QEMU)
    trial.engine.wait_for_daemon()
    assert trial.starts == starts + 1
    trial.remove_all_pods()
    trial.expect_nothing_more_than(before)


@pytest.fixture
def pod_id(trial: Trial) -> Iterator[str]:
    yield trial.insist(lambda: trial.engine.cri.run_pod(pod_config(host_network=False), OURS_IN_QEMU))
    trial.remove_all_pods()


@pytest.mark.slow
def test_a_container_that_cannot_be_made_leaves_nothing_behind(trial: Trial, pod_id: str) -> None:
    cri, pod = trial.engine.cri, pod_config(host_network=False)
    before = trial.remains()
    for point in CREATE:
        if point is F.CONTAINER_CREATED:
            continue  # it is made then
        container = cri.create(pod_id, container_config(name=str(point).replace(".", "-")), pod)
        trial.arm(f"{point}=raise")
        with pytest.raises(grpc.RpcError):
            cri.start(container)
        trial.arm("")
        cri.remove_container(container)
        trial.expect_nothing_more_than(before)


@pytest.mark.slow
@pytest.mark.parametrize("point", CREATE, ids=str)
def test_a_container_is_made_though_the_daemon_dies_meanwhile(trial: Trial, pod_id: str, point: F) -> None:
    cri, pod = trial.engine.cri, pod_config(host_network=False)
    container = cri.create(pod_id, container_config(["sh", "-c", "echo made; exec sleep 1000000"]), pod)
    starts = trial.starts
    trial.arm(f"{point}=kill")
    cri.start(container)
    assert trial.starts == starts + 1
    assert shell(cri, container, "echo alive") == "alive"
    assert trial.lost_connections() == []


@pytest.mark.slow
def test_an_exec_is_done_though_the_daemon_dies_meanwhile(trial: Trial, pod_id: str) -> None:
    cri, pod = trial.engine.cri, pod_config(host_network=False)
    container = cri.create(pod_id, container_config(), pod)
    cri.start(container)
    for point in EXEC:
        starts = trial.starts
        trial.arm(f"{point}=kill")
        answer = cri.exec(container, ["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 3), point
        trial.engine.wait_for_daemon()
        assert trial.starts == starts + 1, point
        trial.insist(lambda: cri.pod(pod_id))
    assert trial.lost_connections() == []


@pytest.mark.slow
@pytest.mark.parametrize("point", [F.CONTAINER_EXITED, F.CONTAINER_EXIT_RECORDED, *DELETE], ids=str)
def test_an_exit_code_is_true_though_the_daemon_dies_meanwhile(trial: Trial, pod_id: str, point: F) -> None:
    cri, pod = trial.engine.cri, pod_config(host_network=False)
    container = cri.create(pod_id, container_config(["sh", "-c", "sleep 1; exit 9"]), pod)
    trial.arm(f"{point}=kill")
    starts = trial.starts
    cri.start(container)
    assert ended(cri, container).exit_code == 9
    trial.engine.wait_for_daemon()
    assert trial.starts == starts + 1
    assert trial.lost_connections() == []


@pytest.mark.slow
@pytest.mark.parametrize("point", STOP, ids=str)
def test_a_pod_can_be_removed_whose_stop_was_cut_short(trial: Trial, before: set[str], point: F) -> None:
    cri = trial.engine.cri
    pod_id, container = trial.insist(lambda: start_vm_container(cri))
    starts = trial.starts
    trial.arm(f"{point}=kill")
    request = pb.StopPodSandboxRequest(pod_sandbox_id=pod_id)
    try:
        cri.runtime.StopPodSandbox(request, timeout=60)
    except grpc.RpcError as error:
        trial.refusal(error)
    trial.engine.wait_for_daemon()
    assert trial.starts == starts + 1
    assert trial.insist(lambda: cri.container(container)).exit_code == 137
    trial.remove_all_pods()
    trial.expect_nothing_more_than(before)
