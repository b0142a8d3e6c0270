"""asyncio for one thread: an epoll loop, and the tasks and futures of the interpreter's own C module.

Left out: transports, protocols, streams, subprocesses, executors, threads, debug mode, event loop policies.
"""

from asyncio.events import get_running_loop
from asyncio.exceptions import CancelledError, InvalidStateError
from asyncio.loop import EventLoop as AbstractEventLoop
from asyncio.loop import Handle, TimerHandle, run
from asyncio.tasks import Event, Future, Task, create_task, current_task, ensure_future, sleep, timeout, wait

__all__ = [
    "AbstractEventLoop",
    "CancelledError",
    "Event",
    "Future",
    "Handle",
    "InvalidStateError",
    "Task",
    "TimerHandle",
    "create_task",
    "current_task",
    "ensure_future",
    "get_running_loop",
    "run",
    "sleep",
    "timeout",
    "wait",
]
