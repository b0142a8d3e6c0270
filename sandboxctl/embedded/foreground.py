"""A pod in the foreground: its output, input and signals are the caller's, and its end is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from google.protobuf.empty_pb2 import Empty

from common.errors import InvalidArgument, SandboxdError
from common.linux.terminal import get_window_size
from proto.gen.containerd.task.v3 import shim_pb2 as task
from sandboxctl.embedded.engine import PodTasks, RunningContainer
from sandboxctl.embedded.plan import ContainerPlan
from sandboxctl.embedded.records import PodRecord
from sandboxctl.embedded.streams import ForegroundStreams, Streams

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def check_terminal(containers: Sequence[ContainerPlan]) -> None:
    """Refuse what one terminal cannot serve.

    :raise InvalidArgument: it is wanted by several, or there is none.
    """
    wanting = [container.name for container in containers if container.stdin or container.terminal]
    if len(wanting) > 1:
        raise InvalidArgument(
            f"only one container can have the input or the terminal, not {' and '.join(wanting)}"
        )
    if any(c.stdin and c.terminal for c in containers) and not os.isatty(sys.stdin.fileno()):
        raise InvalidArgument("standard input is no terminal: leave -t out")


def make_foreground_streams(
    record: PodRecord, container: ContainerPlan, directory: str, label: str
) -> Streams:
    """Make the streams of a container whose output is the caller's; `label` tells its lines from others'."""
    return ForegroundStreams(
        directory,
        record.log_file(container.name),
        stdin=container.stdin,
        terminal=container.terminal,
        prefix=f"{label} | " if label else "",
    )


async def attend(tasks: PodTasks, containers: Sequence[RunningContainer], stop_timeout_s: float) -> int:
    """Carry streams and signals until all containers have ended; return the first exit code that is not 0, or 0.

    A signal goes to all of them, and whoever is left after `stop_timeout_s` is killed: the first process of a
    container may ignore what would end any other.
    """
    loop = asyncio.get_running_loop()
    ends = [asyncio.create_task(tasks.wait(container.record.id)) for container in containers]
    stopping: set[asyncio.Task[None]] = set()

    def on_signal(signum: signal.Signals) -> None:
        stopping.add(loop.create_task(_stop(tasks, containers, signum, stop_timeout_s)))

    with contextlib.ExitStack() as undo:
        for signum in _FORWARDED:
            loop.add_signal_handler(signum, on_signal, signum)
            undo.callback(loop.remove_signal_handler, signum)
        for container in containers:
            undo.enter_context(_attached(tasks, container, loop))
        try:
            codes = await asyncio.gather(*ends)
        finally:
            for unfinished in (*ends, *stopping):
                unfinished.cancel()
        for container in containers:
            await asyncio.to_thread(container.streams.close)
    return next((code for code in codes if code), 0)


async def _stop(
    tasks: PodTasks, containers: Sequence[RunningContainer], signum: signal.Signals, timeout_s: float
) -> None:
    for container in containers:
        await tasks.kill(container.record.id, signum)
    await asyncio.sleep(timeout_s)
    for container in containers:
        await tasks.kill(container.record.id, signal.SIGKILL, everything=True)


@contextlib.contextmanager
def _attached(
    tasks: PodTasks, container: RunningContainer, loop: asyncio.AbstractEventLoop
) -> Iterator[None]:
    """Give the input, and the terminal, to a container for a while."""
    streams, container_id = container.streams, container.record.id
    pending: set[asyncio.Task[None]] = set()

    def begin(method: str, request: task.CloseIORequest | task.ResizePtyRequest) -> None:
        # Kept, or it might be collected before it has run.
        pending.add(loop.create_task(_try(tasks, method, request)))

    def end_input() -> None:
        loop.call_soon_threadsafe(begin, "CloseIO", task.CloseIORequest(id=container_id, stdin=True))

    def resize() -> None:
        width, height = get_window_size(sys.stdin.fileno())
        begin("ResizePty", task.ResizePtyRequest(id=container_id, width=width, height=height))

    with contextlib.ExitStack() as undo:
        if container.plan.terminal and os.isatty(sys.stdin.fileno()):
            undo.enter_context(_raw_terminal(sys.stdin.fileno()))
            loop.add_signal_handler(signal.SIGWINCH, resize)
            undo.callback(loop.remove_signal_handler, signal.SIGWINCH)
            resize()
        if isinstance(streams, ForegroundStreams):
            streams.begin_input(end_input)
        yield


async def _try(tasks: PodTasks, method: str, request: task.CloseIORequest | task.ResizePtyRequest) -> None:
    with contextlib.suppress(SandboxdError):  # the container has ended
        await tasks.call(method, request, Empty)


@contextlib.contextmanager
def _raw_terminal(fd: int) -> Iterator[None]:
    """Let every key go to the container, also those that would end or stop this program."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
