"""The daemon of VM pods dies and comes back; engine, machines and containers do not notice."""

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proto.gen.runtime.v1 import service_pb2 as pb
from tests.chaos.conftest import running
from tests.chaos.trial import Trial
from tests.engine.cri import READY, RUNNING, container_config, pod_config
from tests.engine.engine import OURS_IN_QEMU
from tests.engine.handlers import QEMU
from tests.engine.namespaces import wait_until
from tests.engine.qemu import add_container, information, start_vm_container, write_config
from tests.engine.streaming import Stream, exec_piped
from tests.engine.test_pods import ended, shell
from tests.lines import complete_lines

COUNTING = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.05; done"
UNTIL_TOLD = "while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 7"


@pytest.fixture
def trial(vm_parts: None, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """An engine whose daemon of VM pods is there to be killed."""
    with running(request.session, QEMU) as trial:
        trial.start(config=write_config(trial.directory))
        yield trial


def counted(log: Path) -> list[int]:
    lines = "\n".join(complete_lines(log.read_text()))
    return [int(number) for number in re.findall(r" line (\d+)$", lines, re.MULTILINE)]


@pytest.mark.parametrize("how", ["killed", pytest.param("replaced", marks=pytest.mark.slow)])
def test_nobody_notices_that_the_daemon_was_away(trial: Trial, logs: Path, how: str) -> None:
    cri = trial.engine.cri
    pod = pod_config(host_network=False, log_directory=str(logs))
    pod_id = cri.run_pod(pod, OURS_IN_QEMU)
    counting = cri.create(pod_id, container_config(["sh", "-c", COUNTING], log_path="main.log"), pod)
    cri.start(counting)
    ending = add_container(cri, pod_id, "sh", "-c", UNTIL_TOLD, name="ending")
    request = pb.ExecRequest(container_id=counting, cmd=["sh"], tty=True, stdin=True, stdout=True)
    with Stream(trial.engine, cri.runtime.Exec(request, timeout=20).url) as stream:
        stream.write(b"echo a$((1+1))b\n")
        stream.expect(b"a2b")
        for deaths in range(3):
            if how == "killed":
                trial.restart()
            else:
                trial.replace()
            assert trial.insist(lambda: cri.pod(pod_id)).state == READY
            assert cri.container(counting).state == RUNNING
            assert shell(cri, counting, f"echo {deaths}") == str(deaths)
            stream.write(b"echo c$((%d+1))d\n" % deaths)
            stream.expect(b"c%dd" % (deaths + 1))
        stream.write(b"exit 5\n")
        assert stream.wait() == 5
    shell(cri, ending, "touch /tmp/end")
    assert ended(cri, ending).exit_code == 7
    seen = counted(logs / "main.log")
    wait_until(lambda: len(counted(logs / "main.log")) > len(seen) + 5, timeout_s=20, what="more lines")
    later = counted(logs / "main.log")
    assert later == list(range(1, len(later) + 1))
    add_container(cri, pod_id, name="new")
    trial.remove_all_pods()
    assert trial.lost_connections() == []


@pytest.mark.slow
def test_input_and_output_stay_whole_though_the_daemon_was_away(trial: Trial) -> None:
    cri = trial.engine.cri
    _, container = start_vm_container(cri)
    with exec_piped(trial.engine, container, "sh", "-c", "cat; exit 6") as piped:
        assert piped.stdin is not None
        assert piped.stdout is not None
        # Its client overlooks an end of the input that comes while the exec is still being registered.
        piped.stdin.write(b"ready\n")
        piped.stdin.flush()
        assert piped.stdout.readline() == b"ready\n"
        sent = b""
        for number in range(3):
            part = b"%d" % number * 50_000
            piped.stdin.write(part)
            piped.stdin.flush()
            sent += part
            trial.restart()
        piped.stdin.close()
        assert piped.stdout.read() == sent
        assert piped.wait(timeout=20) == 6
    trial.remove_all_pods()


@pytest.mark.slow
def test_an_exit_while_the_daemon_is_away_is_told(trial: Trial) -> None:
    cri = trial.engine.cri
    _, container = start_vm_container(cri, "sh", "-c", "sleep 2; exit 9")
    trial.hold()
    trial.engine.kill_daemon()
    time.sleep(3)
    trial.release()
    trial.engine.wait_for_daemon()
    assert ended(cri, container).exit_code == 9
    trial.remove_all_pods()


@pytest.mark.slow
@pytest.mark.parametrize("role", ["qemu", "vsock", "share-pod"])
def test_a_machine_that_ends_while_the_daemon_is_away_ends_its_pod_alone(trial: Trial, role: str) -> None:
    cri = trial.engine.cri
    other, neighbour = start_vm_container(cri)
    assert shell(cri, neighbour, "echo alive") == "alive"
    before = trial.remains()
    pod_id, container = start_vm_container(cri)
    pid = information(cri, pod_id)["machine"][role]
    trial.hold()
    trial.engine.kill_daemon()
    trial.engine.namespaces.run(["kill", "-9", str(pid)])
    trial.release()
    trial.engine.wait_for_daemon()
    wait_until(lambda: cri.container(container).exit_code == 137, timeout_s=20, what="the container's end")
    wait_until(
        lambda: trial.insist(lambda: cri.pod(pod_id)).state != READY, timeout_s=20, what="the pod's end"
    )
    trial.insist(lambda: cri.stop_pod(pod_id))
    trial.insist(lambda: cri.remove_pod(pod_id))
    assert cri.pod(other).state == READY
    assert shell(cri, neighbour, "echo alive") == "alive"
    trial.expect_nothing_more_than(before)
    trial.remove_all_pods()


@pytest.mark.slow
def test_a_daemon_may_die_while_it_connects_to_a_guest(trial: Trial) -> None:
    cri, namespaces = trial.engine.cri, trial.engine.namespaces
    pod_id, container = start_vm_container(cri)
    machine = information(cri, pod_id)["machine"]
    sockets = namespaces.root / f"proc/{machine['vsock']}/fd"
    known = len(os.listdir(sockets))
    # It answers when whoever has asked is dead.
    namespaces.run(["kill", "-STOP", str(machine["qemu"])])
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(cri.exec, container, ["true"])
        wait_until(lambda: len(os.listdir(sockets)) > known, timeout_s=20, what="the question")
        trial.restart()
        namespaces.run(["kill", "-CONT", str(machine["qemu"])])
        assert asking.result().exit_code == 0
    assert shell(cri, container, "echo alive") == "alive"
    assert trial.lost_connections() == []
    trial.remove_all_pods()
