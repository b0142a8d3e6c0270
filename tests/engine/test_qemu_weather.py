"""What happens to a pod in a virtual machine when a part of it fails, and that no other pod notices."""

import signal
import time
from collections.abc import Iterator

import grpc
import pytest

from proto.gen.runtime.v1 import service_pb2 as pb
from tests.durations import expect_within
from tests.engine.cri import READY, container_config, matching, pod_config
from tests.engine.engine import OURS_IN_QEMU, Engine
from tests.engine.namespaces import wait_until
from tests.engine.qemu import information, machine_directory, start_vm_container
from tests.engine.test_pods import ended, expect_nothing_more_than, remains, shell

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(vm_engine: Engine) -> Engine:
    return vm_engine


@pytest.fixture(scope="module")
def neighbour(engine: Engine) -> Iterator[tuple[str, str]]:
    """A pod that must not notice anything."""
    pod_id, container = start_vm_container(engine.cri)
    assert shell(engine.cri, container, "echo alive") == "alive"
    yield pod_id, container
    assert engine.cri.pod(pod_id).state == READY
    assert shell(engine.cri, container, "echo alive") == "alive"
    engine.cri.stop_pod(pod_id)
    engine.cri.remove_pod(pod_id)


def kill(engine: Engine, pod_id: str, role: str, number: signal.Signals = signal.SIGKILL) -> None:
    pid = information(engine.cri, pod_id)["machine"][role]
    engine.namespaces.run(["kill", f"-{number.value}", str(pid)])


def expect_end(engine: Engine, pod_id: str, container: str, reason: str) -> None:
    cri = engine.cri
    assert ended(cri, container).exit_code == 137
    wait_until(lambda: cri.pod(pod_id).state != READY, timeout_s=20, what="the end of the pod")
    assert reason in str(information(cri, pod_id)["ended"])


@pytest.mark.parametrize(
    ("role", "reason"), [("qemu", "QEMU was killed"), ("share-pod", "virtiofsd"), ("vsock", "vsock daemon")]
)
def test_the_end_of_a_process_of_the_machine_ends_the_pod_and_is_named(
    engine: Engine, neighbour: tuple[str, str], role: str, reason: str
) -> None:
    before = remains(engine)
    pod_id, container = start_vm_container(engine.cri)
    kill(engine, pod_id, role)
    expect_end(engine, pod_id, container, reason)
    engine.cri.stop_pod(pod_id)
    engine.cri.remove_pod(pod_id)
    expect_nothing_more_than(before, engine)
    assert shell(engine.cri, neighbour[1], "echo alive") == "alive"


def test_a_vsock_daemon_that_does_nothing_any_more_ends_its_pod(
    engine: Engine, neighbour: tuple[str, str]
) -> None:
    cri = engine.cri
    before = remains(engine)
    pod_id, container = start_vm_container(cri)
    kill(engine, pod_id, "vsock", signal.SIGSTOP)
    with pytest.raises(grpc.RpcError, match="does not answer"):
        cri.exec(container, ["true"])
    assert cri.pod(pod_id).state == READY, "it is asked once more, and may take its time"
    wait_until(lambda: cri.pod(pod_id).state != READY, timeout_s=60, what="the end of the pod")
    expect_end(engine, pod_id, container, "does not answer")
    cri.stop_pod(pod_id)
    cri.remove_pod(pod_id)
    expect_nothing_more_than(before, engine)


def test_a_guest_that_panics_ends_its_pod_and_its_words_are_kept(
    engine: Engine, neighbour: tuple[str, str]
) -> None:
    cri = engine.cri
    pod = pod_config(host_network=False)
    pod.linux.security_context.privileged = True
    pod_id = cri.run_pod(pod, OURS_IN_QEMU)
    container = cri.create(pod_id, container_config(linux=matching(pod, privileged=True)), pod)
    cri.start(container)
    assert cri.exec(container, ["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"]).exit_code == 137
    expect_end(engine, pod_id, container, "panic")
    assert "sysrq triggered crash" in (machine_directory(engine, pod_id) / "console.log").read_text(
        errors="replace"
    )
    cri.stop_pod(pod_id)
    cri.remove_pod(pod_id)


def test_a_frozen_guest_delays_nobody_and_can_be_stopped(engine: Engine, neighbour: tuple[str, str]) -> None:
    cri = engine.cri
    before = remains(engine)
    pod_id, _ = start_vm_container(cri)
    kill(engine, pod_id, "qemu", signal.SIGSTOP)

    def expect_ready() -> None:
        assert cri.pod(pod_id).state == READY

    def expect_alive() -> None:
        assert shell(cri, neighbour[1], "echo alive") == "alive"

    # Whoever asks a guest that may not answer waits for 5 s at the least.
    expect_within(4.5, expect_ready)
    expect_within(4.5, expect_alive)
    other, _ = start_vm_container(cri)
    cri.stop_pod(other)
    cri.remove_pod(other)
    # The engine first waits for the end of the container that it kills: a guest that does not answer is ended then.
    cri.stop_pod(pod_id)
    cri.remove_pod(pod_id)
    expect_nothing_more_than(before, engine)


def test_a_guest_that_floods_its_streams_is_slowed_down_alone(
    engine: Engine, neighbour: tuple[str, str]
) -> None:
    cri = engine.cri
    pod_id, container = start_vm_container(cri, "sh", "-c", "while :; do echo flood; done")
    began = time.monotonic()
    for _ in range(5):
        assert shell(cri, neighbour[1], "echo alive") == "alive"
        assert cri.pod(pod_id).state == READY
    assert time.monotonic() - began < 30
    cri.stop_container(container)
    cri.stop_pod(pod_id)
    cri.remove_pod(pod_id)


def test_eight_pods_start_at_once(engine: Engine, neighbour: tuple[str, str]) -> None:
    cri = engine.cri
    before = remains(engine)
    configs = [pod_config(f"pod{n}", host_network=False) for n in range(8)]
    starting = [
        cri.runtime.RunPodSandbox.future(
            pb.RunPodSandboxRequest(config=config, runtime_handler=OURS_IN_QEMU), timeout=110
        )
        for config in configs
    ]
    pods = [each.result().pod_sandbox_id for each in starting]
    for pod_id, config in zip(pods, configs, strict=True):
        container = cri.create(pod_id, container_config(), config)
        cri.start(container)
        assert shell(cri, container, "echo alive") == "alive"
    for pod_id in pods:
        cri.stop_pod(pod_id)
        cri.remove_pod(pod_id)
    expect_nothing_more_than(before, engine)
