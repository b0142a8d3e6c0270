"""Each of the two daemons goes away and comes back; the other one and the containers do not mind."""

import signal

import grpc
import pytest

from tests.engine.conftest import start_container
from tests.engine.cri import EXITED, READY, RUNNING, pod_config
from tests.engine.demo import process_tree
from tests.engine.engine import OURS, STOCK_CRUN, Engine
from tests.engine.namespaces import wait_until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_pods_outlive_a_restart_of_the_engine(own_engine: Engine, number: signal.Signals) -> None:
    pods = [start_container(own_engine.cri) for _ in range(3)]
    own_engine.restart_containerd(number)
    cri = own_engine.cri
    for pod, container in pods:
        assert cri.pod(pod).state == READY
        assert cri.container(container).state == RUNNING
        assert cri.exec(container, ["echo", "here"]).stdout == b"here\n"

    # From now on containerd runs its own `delete` for every task that ends; it must not reach the others.
    pod, container = pods.pop()
    cri.stop_container(container)
    assert cri.container(container).exit_code == 137
    cri.remove_pod(pod)
    for _, other in pods:
        assert cri.container(other).state == RUNNING
        assert cri.exec(other, ["true"]).exit_code == 0
    start_container(cri)


def test_an_exit_while_the_engine_is_away_is_not_lost(own_engine: Engine) -> None:
    proc = own_engine.namespaces.root / "proc"
    _, container = start_container(own_engine.cri, "sh", "-c", "sleep 3; exit 7")
    own_engine.stop_containerd()
    wait_until(
        lambda: not any("exit 7" in line for line in process_tree(proc)),
        timeout_s=20,
        what="the container's end",
    )
    own_engine.start_containerd()
    cri = own_engine.cri
    wait_until(lambda: cri.container(container).state == EXITED, timeout_s=20, what="the engine's notice")
    assert cri.container(container).exit_code == 7


def test_without_the_sandboxer_only_its_own_pods_fail(own_engine: Engine) -> None:
    stock_pod, stock_container = start_container(own_engine.cri, handler=STOCK_CRUN)
    own_engine.stop_sandboxer(signal.SIGKILL)
    with pytest.raises(grpc.RpcError):
        own_engine.cri.run_pod(pod_config(), OURS)
    assert own_engine.cri.pod(stock_pod).state == READY
    assert own_engine.cri.exec(stock_container, ["true"]).exit_code == 0

    own_engine.restart_after_death()
    # The engine's own reconnection takes its time.
    wait_until(lambda: _runs_pods(own_engine), timeout_s=20, what="the next pod")
    _, container = start_container(own_engine.cri)
    assert own_engine.cri.exec(container, ["true"]).exit_code == 0


def test_pods_of_a_killed_sandboxer_can_be_removed_once_it_is_back(own_engine: Engine) -> None:
    pod, container = start_container(own_engine.cri)
    own_engine.stop_sandboxer(signal.SIGKILL)
    cri = own_engine.cri
    wait_until(lambda: cri.container(container).state == EXITED, timeout_s=20, what="the engine's notice")

    own_engine.restart_after_death()
    # The engine's own reconnection takes its time.
    wait_until(lambda: _answers(own_engine, pod), timeout_s=20, what="the pod's status")
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert not any("sleep 1000000" in line for line in process_tree(own_engine.namespaces.root / "proc"))
    assert not list((own_engine.namespaces.root / "run/sandboxd/runc").glob(f"{pod}*"))


def _answers(engine: Engine, pod: str) -> bool:
    try:
        engine.cri.pod(pod)
    except grpc.RpcError:
        return False
    return True


def _runs_pods(engine: Engine) -> bool:
    try:
        engine.cri.run_pod(pod_config(), OURS)
    except grpc.RpcError:
        return False
    return True
