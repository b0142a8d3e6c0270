"""Operations: what is seen of them while they run, and what is told when they have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from common import log
from common.failpoints import Failpoint, failpoint
from common.operations import (
    Action,
    Operation,
    ignore_operations,
    in_progress,
    note_step,
    observe_operations,
    operation,
)


@pytest.fixture
def ended() -> Iterator[list[Operation]]:
    operations: list[Operation] = []
    observe_operations(operations.append)
    yield operations
    ignore_operations(operations.append)


def test_the_failpoints_passed_are_its_steps(ended: list[Operation]) -> None:
    with operation(Action.SANDBOX_START, "pod"):
        failpoint(Failpoint.SANDBOX_STARTING)
        failpoint(Failpoint.STORE_PUT)  # behind many a step, and none itself
        failpoint(Failpoint.SANDBOX_STARTED)
    failpoint(Failpoint.SANDBOX_STOPPING)
    (start,) = ended
    assert [step for step, _ in start.steps] == ["sandbox.starting", "sandbox.started"]
    assert 0 <= start.steps[0][1] <= start.steps[1][1] <= start.took_ns
    assert start.error is None


def test_it_is_in_progress_until_it_ends(ended: list[Operation]) -> None:
    with operation(Action.CONTAINER_CREATE, "pod", "container"):
        with operation(Action.SANDBOX_STOP, "other"):
            pass
        note_step("done")
        (running,) = in_progress("pod")
        assert (running.action, running.container_id, running.took_ns) == (
            "container.create",
            "container",
            -1,
        )
        assert running.steps[0][0] == "done"
        assert in_progress("other") == []
    assert in_progress("pod") == []
    assert [each.action for each in ended] == [Action.SANDBOX_STOP, Action.CONTAINER_CREATE]


def test_an_error_that_leaves_it_is_its_own(ended: list[Operation]) -> None:
    with pytest.raises(KeyError), operation(Action.EXEC_START, "pod", "container", "exec"):
        raise KeyError("gone")
    data = ended[0].as_data()
    assert (data["action"], data["exec_id"], data["error"]) == ("exec.start", "exec", "'gone'")
    assert data["age_us"] == ended[0].took_ns // 1000


def test_log_lines_inside_bear_the_ids() -> None:
    with log.capture() as lines:
        with operation(Action.CONTAINER_START, "pod", "container"):
            log.get_logger().info("something")
        log.get_logger().info("something")
    assert (lines[0]["sandbox_id"], lines[0]["container_id"], "exec_id" in lines[0]) == (
        "pod",
        "container",
        False,
    )
    assert "sandbox_id" not in lines[1]


async def test_operations_at_once_do_not_mix(ended: list[Operation]) -> None:
    async def start(sandbox_id: str) -> None:
        with operation(Action.SANDBOX_START, sandbox_id):
            for number in range(3):
                await asyncio.sleep(0)
                note_step(f"{sandbox_id}{number}")

    await asyncio.gather(start("a"), start("b"))
    assert {each.sandbox_id: [step for step, _ in each.steps] for each in ended} == {
        "a": ["a0", "a1", "a2"],
        "b": ["b0", "b1", "b2"],
    }


async def test_what_was_begun_inside_and_goes_on_adds_nothing_to_it(ended: list[Operation]) -> None:
    with operation(Action.SANDBOX_START, "pod"):
        later = asyncio.get_running_loop().create_task(asyncio.sleep(0))
        later.add_done_callback(lambda _: note_step("late"))
    await later
    await asyncio.sleep(0)
    assert ended[0].steps == []
