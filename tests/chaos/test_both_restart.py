"""containerd and the sandboxer restart, one after the other and at once."""

import signal

import pytest

from tests.chaos.trial import Trial
from tests.chaos.workload import RUNNING, WRITER_EXIT_CODE, Pod, log_lines
from tests.engine.namespaces import wait_until

PODS = 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_no_container_is_lost_when_the_engine_the_sandboxer_and_both_restart(
    trial: Trial, number: signal.Signals
) -> None:
    trial.start()
    engine = trial.engine
    pods = [Pod(trial, host_network=number is signal.SIGTERM) for _ in range(PODS)]
    writers = [pod.writer() for pod in pods]

    def all_run() -> None:
        for pod, writer in zip(pods, writers, strict=True):
            assert pod.is_ready
            assert pod.status(writer).state == RUNNING
            assert pod.exec(writer, "sh", "-c", "exit 11").exit_code == 11

    all_run()
    engine.restart_containerd(number)
    all_run()
    engine.kill_daemon(number)
    engine.wait_for_daemon()
    all_run()

    trial.hold()
    engine.stop_containerd(number)
    engine.kill_daemon(number)
    trial.release()
    engine.start_containerd()
    engine.wait_for_daemon()
    # containerd may have been earlier: it asks a sandboxer that does not answer no second time.
    wait_until(lambda: all(pod.is_ready for pod in pods), timeout_s=20, what="the pods")
    all_run()

    # The other way round: the daemon is killed while the engine recovers.
    engine.stop_containerd(number)
    engine.kill_daemon(number)
    engine.wait_for_daemon()
    engine.start_containerd()
    all_run()
    for pod, writer in zip(pods, writers, strict=True):
        assert pod.stop(writer) == WRITER_EXIT_CODE
        # While containerd is away nobody reads; whatever is in the pipe then is not lost, the writer waits.
        lines = log_lines(writer)
        assert lines[-1] == f"end {len(lines) - 1}"
        pod.remove()
