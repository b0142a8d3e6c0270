"""Connections are gone for good: what runs on is found and ended once the engine has disowned it, and not before."""

import signal
import time

from tests.chaos.trial import Trial
from tests.chaos.workload import Pod
from tests.engine.cri import EXITED, RUNNING
from tests.engine.namespaces import wait_until

GRACE_S = 2


def lose_connections(trial: Trial) -> None:
    """End supervisor and daemon without a word, and start both anew."""
    trial.engine.kill_sandboxer()
    trial.engine.restart_after_death()


def grows(trial: Trial, pod: Pod) -> bool:
    """Whether the processes of a pod's container still run."""
    return any("sleep" in line for line in trial.remains() if line.startswith("process"))


def test_what_the_engine_has_disowned_is_ended_and_removed(trial: Trial) -> None:
    trial.start(config=trial.impatient_config(GRACE_S))
    before = {line for line in trial.remains() if line.startswith("process")}
    pod = Pod(trial)
    container = pod.run("sleep", "1000000")
    assert grows(trial, pod)
    lose_connections(trial)
    # containerd takes the loss of the connection for the container's end.
    wait_until(lambda: pod.status(container).state == EXITED, timeout_s=20, what="the engine's notice")
    wait_until(
        # The runtime that takes the container away is a process, too.
        lambda: not {line for line in trial.remains() if line.startswith("process")} - before,
        timeout_s=20,
        what="the collection",
    )
    # The pod itself was never disowned, and goes on.
    assert pod.is_ready
    again = pod.writer("again")
    pod.end_writer(again)
    pod.remove()
    assert not list(trial.state().glob(f"{pod.id}*"))


def test_nothing_is_collected_while_the_engine_cannot_be_asked_or_still_knows_it(trial: Trial) -> None:
    trial.start(config=trial.impatient_config(GRACE_S))
    pod = Pod(trial)
    writer = pod.writer()
    trial.engine.stop_containerd(signal.SIGKILL)
    lose_connections(trial)
    time.sleep(3 * GRACE_S)
    assert grows(trial, pod)
    trial.engine.start_containerd()
    wait_until(lambda: pod.status(writer).state == RUNNING, timeout_s=20, what="the engine's own recovery")
    time.sleep(3 * GRACE_S)
    pod.expect_exec(writer, 15)
    assert pod.stop(writer) == pod.programs.stopped_code
    pod.remove()
