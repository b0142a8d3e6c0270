"""kill -9 between the opening of an output's FIFO and the message that keeps it: the engine sees no end of it."""

import pytest

from common.failpoints import Failpoint
from tests.chaos.sizes import HANDLERS, KEEPERS
from tests.chaos.test_failpoints import use_terminal
from tests.chaos.trial import Trial
from tests.chaos.workload import Pod


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("handler", HANDLERS, ids=str)
def test_no_output_is_cut_off_that_was_only_just_opened(trial: Trial, keeper: str) -> None:
    trial.start(keeper=keeper)
    first = Pod(trial)
    first.end_writer(first.writer())
    first.remove()
    before = trial.remains()
    pod, starts = Pod(trial), trial.starts
    writers = []
    for output in (1, 2):  # stdout, stderr
        trial.arm(f"{Failpoint.OUTPUT_OPENED}=kill@{output}")
        writers.append(pod.writer(f"writer{output}"))
        trial.engine.wait_for_daemon()
        trial.arm(f"{Failpoint.OUTPUT_OPENED}=kill@{output}")
        pod.expect_exec(writers[0], 3)
        trial.engine.wait_for_daemon()
    trial.arm(f"{Failpoint.OUTPUT_OPENED}=kill")
    use_terminal(trial, writers[0])
    trial.engine.wait_for_daemon()
    # The next daemon dies of the same output again, before it has recovered or when it is asked again.
    trial.arm(f"{Failpoint.OUTPUT_OPENED}=kill")
    trial.arm_next(f"{Failpoint.OUTPUT_OPENED}=kill")
    writers.append(pod.writer("last"))
    trial.engine.wait_for_daemon()
    assert trial.starts - starts == 7
    for writer in writers:
        assert pod.end_writer(writer) > 0
    pod.remove()
    assert trial.lost_connections() == []
    trial.expect_nothing_more_than(before)
