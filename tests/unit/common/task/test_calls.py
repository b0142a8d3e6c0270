"""The Task service's calls as operations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.errors import Code
from common.operations import Operation, ignore_operations, observe_operations
from tests.unit.common.task.pod_lives import Pod


@pytest.fixture
def ended() -> Iterator[list[Operation]]:
    operations: list[Operation] = []
    observe_operations(operations.append)
    yield operations
    ignore_operations(operations.append)


async def test_each_call_that_changes_something_is_one_with_its_steps(
    pod: Pod, ended: list[Operation]
) -> None:
    await pod.run("c", "sleep", "60")
    await pod.call("State", id="c")
    create, start = ended
    assert (create.action, create.sandbox_id, create.container_id) == ("container.create", "pod", "c")
    assert [step for step, _ in create.steps] == [
        "container.recorded",
        "container.spec_written",
        "container.streams_opened",
        "container.made",
        "container.settled",
        "container.created",
    ]
    assert [step for step, _ in start.steps] == [
        "container.starting",
        "container.running",
        "container.started",
    ]


async def test_those_of_an_exec_bear_its_id_and_a_failure_its_error(pod: Pod, ended: list[Operation]) -> None:
    await pod.run("c", "sleep", "60")
    del ended[:]
    await pod.refused(Code.NOT_FOUND, "Start", id="c", exec_id="e")
    await pod.refused(Code.FAILED_PRECONDITION, "Delete", id="c")
    assert [(each.action.value, each.exec_id) for each in ended] == [
        ("exec.start", "e"),
        ("container.delete", ""),
    ]
    assert "no exec 'e' in container c" in str(ended[0].error)


async def test_what_is_sent_for_an_id_is_not_kept_whole(pod: Pod, ended: list[Operation]) -> None:
    await pod.refused(Code.NOT_FOUND, "Start", id="x" * 1000)
    assert ended[0].container_id == "x" * 100
