"""Tasks, and what waits for them or limits them in time."""

from _asyncio import Future, Task, _current_tasks, _enter_task, _leave_task, get_running_loop
from asyncio.exceptions import CancelledError

__all__ = [
    "Event",
    "Future",
    "Task",
    "_enter_task",
    "_leave_task",
    "create_task",
    "current_task",
    "ensure_future",
    "sleep",
    "timeout",
    "wait",
]


def current_task():
    """Return the task that is running, or None."""
    return _current_tasks.get(get_running_loop())


def create_task(coroutine, *, name=None, context=None):
    """Run a coroutine in the running loop."""
    return get_running_loop().create_task(coroutine, name=name, context=context)


def ensure_future(awaitable):
    """Return a future as it is, and a task for a coroutine."""
    return awaitable if isinstance(awaitable, Future) else get_running_loop().create_task(awaitable)


async def sleep(delay, result=None):
    """Return after so many seconds."""
    loop = get_running_loop()
    future = loop.create_future()
    timer = loop.call_later(max(0, delay), _wake, future)
    try:
        await future
    finally:
        timer.cancel()
    return result


async def wait(futures, *, timeout=None):
    """Return those that are done and those that are not, when all are done or the time is over."""
    futures = set(futures)
    pending = {future for future in futures if not future.done()}
    if pending:
        loop = get_running_loop()
        waiter = loop.create_future()

        def done(future):
            pending.discard(future)
            if not pending:
                _wake(waiter)

        timer = None if timeout is None else loop.call_later(timeout, _wake, waiter)
        for future in pending:
            future.add_done_callback(done)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            for future in futures:
                future.remove_done_callback(done)
    finished = {future for future in futures if future.done()}
    return finished, futures - finished


class Event:
    """Set once or again; who waits goes on when it is set."""

    def __init__(self):
        self._is_set = False
        self._waiters = []

    def is_set(self):
        """Tell whether it is set."""
        return self._is_set

    def set(self):
        """Let everybody go on."""
        self._is_set = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _wake(waiter)

    def clear(self):
        """Let those wait who come from now on."""
        self._is_set = False

    async def wait(self):
        """Return when it is set."""
        if not self._is_set:
            waiter = get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return True


class timeout:
    """An asynchronous context manager that raises TimeoutError after so many seconds; None: never."""

    def __init__(self, delay):
        self._delay = delay
        self._task = None
        self._timer = None
        self._expired = False
        self._cancelling = 0

    def expired(self):
        """Tell whether the time is over."""
        return self._expired

    async def __aenter__(self):
        self._task = current_task()
        if self._task is None:
            raise RuntimeError("timeout outside of a task")
        self._cancelling = self._task.cancelling()
        if self._delay is not None:
            self._timer = get_running_loop().call_later(self._delay, self._expire)
        return self

    async def __aexit__(self, kind, error, trace):
        if self._timer is not None:
            self._timer.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and kind is CancelledError:
            raise TimeoutError from error

    def _expire(self):
        self._expired = True
        self._task.cancel()


def _wake(future):
    if not future.done():
        future.set_result(None)
