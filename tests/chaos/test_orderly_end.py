"""The daemon is replaced in good order while somebody talks to it without a pause."""

import asyncio
import signal

import pytest
from google.protobuf.empty_pb2 import Empty

from proto.gen.containerd.task.v3 import shim_pb2 as api
from tests.chaos.trial import CALL_TIMEOUT_S, Trial
from tests.chaos.workload import Container, Pod

SERVICE = "containerd.task.v3.Task"
REPLACEMENTS = 5


class Caller:
    """Signals a container and asks for its state, again and again, on a connection of its own."""

    def __init__(self, trial: Trial, pod: Pod, container: Container) -> None:
        self.calls = 0
        self.over = False
        self._trial = trial
        self._pod = pod
        self._container = container

    async def run(self) -> None:
        """Call until told that it is over; an error of any call is raised."""
        async with await self._trial.task_client(self._pod.id) as client:
            while not self.over:
                # Not "not found", which an engine takes for the container's end.
                kill = api.KillRequest(id=self._container.id, signal=signal.SIGWINCH)
                await client.call(SERVICE, "Kill", kill, Empty, CALL_TIMEOUT_S)
                ask = api.StateRequest(id=self._container.id)
                state = await client.call(SERVICE, "State", ask, api.StateResponse, CALL_TIMEOUT_S)
                assert state.pid > 0
                self.calls += 1


@pytest.mark.timeout(180)
def test_an_orderly_end_answers_no_call_wrongly(trial: Trial) -> None:
    trial.start()
    pod = Pod(trial)
    writer = pod.writer()
    callers = [Caller(trial, pod, writer) for _ in range(4)]

    async def replace_meanwhile() -> None:
        calling = [asyncio.create_task(caller.run()) for caller in callers]
        for _ in range(REPLACEMENTS):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(trial.replace)
        for caller in callers:
            caller.over = True
        await asyncio.gather(*calling)

    asyncio.run(replace_meanwhile())
    assert all(caller.calls > REPLACEMENTS for caller in callers)
    pod.expect_exec(writer, 12)
    pod.end_writer(writer)
    pod.remove()
    assert trial.lost_connections() == []
