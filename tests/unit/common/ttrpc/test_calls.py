"""Advancing a handler inline: it must not be able to tell that it is not in a task yet."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from common.ttrpc import CallContext, Client, Method, Server, Service, StatusCode, StatusError
from tests.unit.common.ttrpc.peers import Place, until

Handler = Callable[[Any, BytesValue, CallContext], Awaitable[BytesValue]]
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class Stage:
    """Serves one handler and calls it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.client: Client | None = None

    async def call(self, handler: Handler, timeout_s: float | None = 5) -> bytes:
        if self.client is None:
            self.place.listen()
            self.client = await self.place.client()
        self.place.server.services = {"s": Service({"m": Method(BytesValue, handler)}, None)}
        return (await self.client.call("s", "m", BytesValue(value=b"in"), BytesValue, timeout_s)).value


@pytest.fixture
async def stage(place: Place) -> AsyncIterator[Stage]:
    yield Stage(place)


async def test_a_handler_that_does_not_wait_makes_no_task(stage: Stage) -> None:
    tasks: list[int] = []

    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        tasks.append(len(asyncio.all_tasks()))
        return request

    await stage.call(handler)
    assert tasks == [len(asyncio.all_tasks())]


async def test_a_timeout_entered_in_the_first_step_works(stage: Stage) -> None:
    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        try:
            async with asyncio.timeout(0.02):
                await asyncio.sleep(10)
        except TimeoutError:
            return BytesValue(value=b"timed out")
        return request

    assert await stage.call(handler) == b"timed out"


@pytest.mark.parametrize("waits", (False, True))
async def test_a_timeout_that_has_passed_already_is_raised_at_the_first_wait(
    stage: Stage, waits: bool
) -> None:
    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        try:
            async with asyncio.timeout(0):
                if waits:
                    await asyncio.sleep(10)
        except TimeoutError:
            return BytesValue(value=b"timed out")
        return request

    assert await stage.call(handler) == (b"timed out" if waits else b"in")


async def test_a_task_group_entered_in_the_first_step_works(stage: Stage) -> None:
    async def child() -> bytes:
        await asyncio.sleep(0.001)
        return b"child"

    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(child()) for _ in range(3)]
        return BytesValue(value=b"+".join(task.result() for task in tasks))

    assert await stage.call(handler) == b"child+child+child"


async def test_a_task_group_whose_child_fails_cancels_the_handler(stage: Stage) -> None:
    caught: list[str] = []

    async def child() -> None:
        raise StatusError(StatusCode.ABORTED, "child")

    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                await asyncio.sleep(10)
        except* StatusError as errors:
            caught.append(str(errors.exceptions[0]))
        return request

    assert await stage.call(handler) == b"in"
    assert caught == ["ABORTED: child"]


@pytest.mark.parametrize("delay_s", (0, 0.001))
async def test_wait_for_gather_and_shield_work_in_the_first_step(stage: Stage, delay_s: float) -> None:
    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        one = asyncio.wait_for(asyncio.sleep(delay_s, b"1"), 5)
        two = asyncio.shield(asyncio.ensure_future(asyncio.sleep(delay_s, b"2")))
        return BytesValue(value=b"".join(await asyncio.gather(one, two)))

    assert await stage.call(handler) == b"12"


async def test_the_current_task_can_be_asked_for_its_state_and_cancelled(stage: Stage) -> None:
    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        task = asyncio.current_task()
        assert task is not None
        assert (task.done(), task.cancelled(), task.cancelling()) == (False, False, 0)
        assert task.get_name() == "s/m"
        assert task.get_loop() is asyncio.get_running_loop()
        task.cancel()
        assert task.cancelling() == 1
        assert task.uncancel() == 0
        task.cancel()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            return BytesValue(value=b"cancelled")
        return request

    assert await stage.call(handler) == b"cancelled"


async def test_a_handler_that_ends_cancelled_is_answered_cancelled(stage: Stage) -> None:
    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        raise asyncio.CancelledError

    with pytest.raises(StatusError) as raised:
        await stage.call(handler)
    assert raised.value.code == StatusCode.CANCELLED


async def test_what_a_handler_waits_for_is_cancelled_with_it_even_before_its_task_ran(
    place: Place,
) -> None:
    waiting: list[asyncio.Future[None]] = []

    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        waiting.append(asyncio.get_running_loop().create_future())
        asyncio.get_running_loop().call_soon(server.close)
        await waiting[0]
        return request

    server = Server({"s": Service({"m": Method(BytesValue, handler)}, None)})
    place.server = server
    place.listen()
    client = await place.client()
    with pytest.raises(ConnectionError):
        await client.call("s", "m", BytesValue(), BytesValue)
    await server.wait_closed()
    assert waiting[0].cancelled()


@pytest.mark.parametrize("waits", (False, True))
async def test_a_handler_may_close_its_own_server(place: Place, waits: bool) -> None:
    ended: list[bool] = []

    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        server.close()
        try:
            if waits:
                await asyncio.sleep(10)
            return request
        finally:
            ended.append(True)

    server = Server({"s": Service({"m": Method(BytesValue, handler)}, None)})
    place.server = server
    place.listen()
    client = await place.client()
    with pytest.raises(ConnectionError):
        await client.call("s", "m", BytesValue(), BytesValue)
    await server.wait_closed()
    assert ended == [True]


async def test_context_variables_last_for_the_call_and_no_longer(stage: Stage) -> None:
    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        before = VARIABLE.get()
        VARIABLE.set("mine")
        await asyncio.sleep(0.001)
        return BytesValue(value=f"{before} {VARIABLE.get()}".encode())

    assert await stage.call(handler) == b"unset mine"
    assert await stage.call(handler) == b"unset mine"


async def test_a_handler_may_be_any_callable_that_returns_an_awaitable(stage: Stage) -> None:
    def future(target: object, request: BytesValue, context: CallContext) -> Awaitable[BytesValue]:
        result = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(result.set_result, request)
        return result

    def crash(target: object, request: BytesValue, context: CallContext) -> Awaitable[BytesValue]:
        raise StatusError(StatusCode.INTERNAL, "before there was a coroutine")

    assert await stage.call(future) == b"in"
    with pytest.raises(StatusError, match="before there was"):
        await stage.call(crash)


async def test_a_handler_that_yields_to_the_loop_goes_on(stage: Stage) -> None:
    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        for _ in range(3):
            await asyncio.sleep(0)
        return request

    assert await stage.call(handler) == b"in"


async def test_a_lost_connection_lets_the_handler_clean_up(place: Place) -> None:
    cleaned: list[bool] = []

    async def handler(target: object, request: BytesValue, context: CallContext) -> BytesValue:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)
        return request

    place.server = Server({"s": Service({"m": Method(BytesValue, handler)}, None)})
    place.listen()
    client = await place.client()
    call = asyncio.create_task(client.call("s", "m", BytesValue(), BytesValue))
    await until(lambda: place.server.connection_count == 1)
    await asyncio.sleep(0.01)
    client.close()
    with pytest.raises(ConnectionError):
        await call
    await until(lambda: place.server.connection_count == 0)
    await place.server.wait_closed()
    assert cleaned == [True]
