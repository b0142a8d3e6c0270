"""A call in progress on the server: what its handler is told, and how the handler is advanced.

A handler's first step runs at once, in the callback that read the request. Most handlers end there and never
cost a task. One that waits is handed, at the point it reached, to an asyncio.Task. Code in the first step may
still ask for the current task (`asyncio.timeout` and `asyncio.TaskGroup` keep it, to cancel it later), so
the `Call` itself stands in as the current task during that step, as asyncio's interface for task
implementations allows, and passes on to the real task whatever it is asked afterwards.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from google.protobuf.message import Message

from common.ttrpc._errors import StatusCode, StatusError

if TYPE_CHECKING:
    from common.ttrpc._stream import ServerStream


class PeerCredentials(NamedTuple):
    """Who connected (SO_PEERCRED, unix(7)), as seen at connect time."""

    pid: int
    uid: int
    gid: int


def only_root(peer: PeerCredentials) -> bool:
    """Let only root stay (`Server`'s `authorize`)."""
    return peer.uid == 0


class CallContext:
    """What a handler may know of its call beside the request."""

    __slots__ = (
        "connection_id",
        "deadline",
        "metadata",
        "method",
        "peer",
        "replayed",
        "service",
        "stream_id",
    )

    def __init__(
        self,
        service: str,
        method: str,
        metadata: tuple[tuple[str, str], ...],
        deadline: float | None,
        peer: PeerCredentials | None,
        connection_id: int,
        stream_id: int,
        replayed: bool = False,
    ) -> None:
        self.service = service
        self.method = method
        self.metadata = metadata
        """Pairs as the client sent them; a key may occur more than once."""
        self.deadline = deadline
        """Time of the loop's clock, in seconds, at which a waiting handler is cancelled; None: no limit."""
        self.peer = peer
        self.connection_id = connection_id
        self.stream_id = stream_id
        self.replayed = replayed
        """Whether a process that died had already begun with this call: all, some or nothing of it may be done."""


class Method(NamedTuple):
    """A unary method: `handler(target, request, context)` returns the response message.

    `journaled` declares that it waits or changes something: its frames go to the server's journal. `repeatable`
    declares that it changes nothing, so that its outcome need not be recorded: it is simply run again.
    """

    request: type[Message]
    handler: Callable[[Any, Any, CallContext], Awaitable[Message]]
    journaled: bool = False
    repeatable: bool = False


class StreamMethod(NamedTuple):
    """A streaming method: `handler(target, stream, context)` receives messages of type `request` from the
    stream.

    It returns None if it streamed its answers (the stream ends without a further message), or the one
    response message of a method that only its client streams to. Streams do not outlast the process: a
    successor answers those that were open with UNAVAILABLE, which is why their requests are on record.
    """

    request: type[Message]
    handler: Callable[[Any, ServerStream[Any], CallContext], Awaitable[Message | None]]

    @property
    def journaled(self) -> bool:
        """Always."""
        return True


CallObserver = Callable[[str, str, int, float], None]
"""`(service, method, code, seconds)` of a call that has been answered; must not raise."""

Answer = Callable[[Any, Any, bytes], Message]
"""`(target, request, payload)` of an answer: the answer for the client. ValueError or DecodeError: it is a lie."""

Substitute = Callable[[Any, Any], "Message | None"]
"""`(target, request)`: what is answered without asking the far end, if anything; raises what is to be answered."""


class RelayedMethod(NamedTuple):
    """A unary method that a `RelayServer` hands on as it is. `before` may answer it at once; `after` checks what comes
    back; `bereaved` answers it when the far end is gone for good."""

    request: type[Message]
    before: Substitute
    after: Answer
    bereaved: Substitute
    journaled: bool = True
    repeatable: bool = True


class Service(NamedTuple):
    """A method table, shared by all servers, and the object that the handlers of this one act on."""

    methods: Mapping[str, Method | StreamMethod | RelayedMethod]
    target: object


_NOTHING: Any = object()


class _Started(Coroutine[Any, Any, Any]):
    """A coroutine already advanced once: gives out what it yielded then, and goes on from there."""

    __slots__ = ("_coroutine", "_yielded")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], yielded: Any) -> None:
        self._coroutine = coroutine
        self._yielded = yielded

    @property
    def cr_code(self) -> Any:
        return getattr(self._coroutine, "cr_code", None)

    @property
    def cr_frame(self) -> Any:
        return getattr(self._coroutine, "cr_frame", None)

    @property
    def cr_running(self) -> bool:
        return getattr(self._coroutine, "cr_running", False)

    def send(self, value: Any) -> Any:
        if self._yielded is not _NOTHING:
            yielded, self._yielded = self._yielded, _NOTHING
            return yielded
        return self._coroutine.send(value)

    def throw(self, *exception: Any) -> Any:
        self._yielded = _NOTHING
        return self._coroutine.throw(*exception)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("only a task drives this")

    def cancel_awaited(self) -> None:
        """Cancel what the coroutine waits for if its task does not know it yet, as the task would have."""
        if isinstance(self._yielded, asyncio.Future):
            self._yielded.cancel()


class Call:
    """One handler being run. `finish(call, result, error)` is called exactly once, when it ended."""

    __slots__ = (
        "__weakref__",
        "_cancels",
        "_finish",
        "_loop",
        "_started",
        "_timer",
        "context",
        "expired",
        "journaled",
        "repeatable",
        "stream",
        "task",
    )

    def __init__(
        self,
        context: CallContext,
        journaled: bool,
        stream: ServerStream[Any] | None,
        loop: asyncio.AbstractEventLoop,
        finish: Callable[[Call, Message | None, BaseException | None], None],
    ) -> None:
        self.context = context
        self.journaled = journaled
        self.repeatable = False
        self.stream = stream
        self.expired = False
        self._loop = loop
        self._finish = finish
        self._cancels = 0
        self.task: asyncio.Task[Any] | None = None
        self._started: _Started | None = None
        self._timer: asyncio.TimerHandle | None = None

    def run(self, awaitable: Awaitable[Any]) -> bool:
        """Advance the handler once; return whether it ended (`finish` was called) or waits."""
        coroutine = awaitable if type(awaitable) is CoroutineType else _await(awaitable)
        context = contextvars.copy_context()
        as_task = cast("asyncio.Task[Any]", self)
        _enter_task(self._loop, as_task)
        try:
            try:
                yielded = context.run(coroutine.send, None)
            finally:
                _leave_task(self._loop, as_task)
        except StopIteration as stop:
            self._finish(self, stop.value, None)
            return True
        except (Exception, asyncio.CancelledError) as error:
            self._finish(self, None, error)
            return True
        self._started = _Started(coroutine, yielded)
        self.task = self._loop.create_task(self._started, context=context)
        self.task.add_done_callback(self._on_task_done)
        for _ in range(self._cancels):
            self.task.cancel()
        if self.context.deadline is not None:
            self._timer = self._loop.call_at(self.context.deadline, self._expire)
        return False

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        error: BaseException | None = None
        result = None
        if task.cancelled():
            error = asyncio.CancelledError()
            if self.expired:
                error = StatusError(StatusCode.DEADLINE_EXCEEDED, "the call's deadline has passed")
        else:
            error = task.exception()
            if error is None:
                result = task.result()
        self._finish(self, result, error)

    def _expire(self) -> None:
        self.expired = True
        self.cancel()

    # ── what code in the first step asks of its current task ───────────────────────────────────

    def cancel(self, msg: Any | None = None) -> bool:
        if self.task is None:
            self._cancels += 1
            return True
        cancelled = self.task.cancel(msg)
        if cancelled and self._started is not None:
            self._started.cancel_awaited()
        return cancelled

    def cancelling(self) -> int:
        return self._cancels if self.task is None else self.task.cancelling()

    def uncancel(self) -> int:
        if self.task is not None:
            return self.task.uncancel()
        self._cancels = max(0, self._cancels - 1)
        return self._cancels

    def done(self) -> bool:
        return self.task is not None and self.task.done()

    def cancelled(self) -> bool:
        return self.task is not None and self.task.cancelled()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def get_name(self) -> str:
        return f"{self.context.service}/{self.context.method}"


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
