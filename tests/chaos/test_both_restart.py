"""containerd and the sandboxer restart, one after the other and at once."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos.trial import Trial
from tests.chaos.workload import Pod
from tests.engine.cri import RUNNING
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

    def restart_sandboxer() -> None:
        if number is signal.SIGKILL:
            trial.restart()
        else:
            trial.replace()

    def all_run() -> None:
        for pod, writer in zip(pods, writers, strict=True):
            assert pod.is_ready
            assert pod.status(writer).state == RUNNING
            pod.expect_exec(writer, 11)

    all_run()
    engine.restart_containerd(number)
    all_run()
    restart_sandboxer()
    all_run()

    engine.stop_containerd(number)
    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(restart_sandboxer)
        engine.start_containerd()
        restarting.result()
    # containerd may have been earlier: it asks a sandboxer that does not answer no second time.
    wait_until(lambda: all(pod.is_ready for pod in pods), timeout_s=20, what="the pods")
    all_run()

    engine.stop_containerd(number)
    restart_sandboxer()
    engine.start_containerd()
    all_run()
    for pod, writer in zip(pods, writers, strict=True):
        # While containerd is away nobody reads; whatever is in the pipe then is not lost, the writer waits.
        pod.end_writer(writer)
        pod.remove()
