"""A pod in the foreground: its output, input and signals are the caller's, and its end is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from common.errors import InvalidArgument, SandboxdError
from common.linux.terminal import get_window_size
from sandboxctl.embedded.engine import RunningContainer
from sandboxctl.embedded.interruption import Interruption
from sandboxctl.embedded.plan import ContainerPlan
from sandboxctl.embedded.records import PodRecord
from sandboxctl.embedded.streams import ForegroundStreams, Streams
from sandboxctl.streams import feed, raw_terminal
from sandboxctl.tasks import Process, Tasks


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


async def attend(
    tasks: Tasks, containers: Sequence[RunningContainer], stop_timeout_s: float, interruption: Interruption
) -> int:
    """Carry streams and signals until all containers have ended; return the first exit code that is not 0, or 0.

    A signal goes to all of them, and whoever is left after `stop_timeout_s` is killed: the first process of a
    container may ignore what would end any other.
    """
    loop = asyncio.get_running_loop()
    processes = [tasks.process(container.record.id) for container in containers]
    ends: list[asyncio.Task[int]] = []
    stopping: set[asyncio.Task[None]] = set()

    def on_signal(signum: signal.Signals) -> None:
        stopping.add(loop.create_task(_stop(processes, signum, stop_timeout_s)))

    with contextlib.ExitStack() as undo:
        interruption.tell(on_signal)
        undo.callback(interruption.ignore)
        undo.callback(lambda: [unfinished.cancel() for unfinished in (*ends, *stopping)])
        for process, container in zip(processes, containers, strict=True):
            undo.callback(container.streams.close)
            undo.enter_context(_attached(process, container, loop))
        ends += [asyncio.create_task(process.wait()) for process in processes]
        codes = await asyncio.gather(*ends)
        watched = [c.streams for c in containers if isinstance(c.streams, ForegroundStreams)]
        # Whoever reads our output may never go on.
        interruption.tell(lambda _: _close(watched))
        await asyncio.gather(*(streams.finish() for streams in watched))
    return next((code for code in codes if code), 0)


def _close(watched: Sequence[ForegroundStreams]) -> None:
    for streams in watched:
        streams.close()


async def _stop(processes: Sequence[Process], signum: signal.Signals, timeout_s: float) -> None:
    for process in processes:
        await _try(process.kill(signum))
    await asyncio.sleep(timeout_s)
    for process in processes:
        await _try(process.kill(signal.SIGKILL))


@contextlib.contextmanager
def _attached(
    process: Process, container: RunningContainer, loop: asyncio.AbstractEventLoop
) -> Iterator[None]:
    """Give the input, and the terminal, to a container for a while."""
    streams = container.streams
    pending: set[asyncio.Task[None]] = set()

    def begin(call: Coroutine[Any, Any, None]) -> None:
        # Kept, or it might be collected before it has run.
        pending.add(loop.create_task(_try(call)))

    def resize() -> None:
        begin(process.resize(*get_window_size(sys.stdin.fileno())))

    with contextlib.ExitStack() as undo:
        if container.plan.terminal and os.isatty(sys.stdin.fileno()):
            undo.enter_context(raw_terminal(sys.stdin.fileno()))
            loop.add_signal_handler(signal.SIGWINCH, resize)
            undo.callback(loop.remove_signal_handler, signal.SIGWINCH)
            resize()
        if isinstance(streams, ForegroundStreams) and streams.input:
            feeding = loop.create_task(feed(process, streams.input.take()))
            undo.callback(feeding.cancel)
        yield


async def _try(call: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(SandboxdError):  # the container has ended
        await call
