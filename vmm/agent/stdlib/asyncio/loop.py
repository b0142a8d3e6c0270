"""The event loop: callbacks that are due, timers in a heap, descriptors in an epoll, signals through a pipe."""

import errno
import os
import select
import signal
import sys
import time
from _heapq import heappop, heappush
from collections import deque
from contextvars import copy_context

from asyncio.events import _set_running_loop
from asyncio.exceptions import CancelledError
from asyncio.tasks import Future, Task

_READ = select.EPOLLIN
_WRITE = select.EPOLLOUT
_ERROR = select.EPOLLHUP | select.EPOLLERR


class Handle:
    """A callback that is to be called."""

    __slots__ = ("_arguments", "_callback", "_context", "_is_cancelled")

    def __init__(self, callback, arguments, context):
        self._callback = callback
        self._arguments = arguments
        self._context = copy_context() if context is None else context
        self._is_cancelled = False

    def cancel(self):
        """Do not call it."""
        self._is_cancelled = True
        self._callback = self._arguments = None

    def cancelled(self):
        """Tell whether it will not be called."""
        return self._is_cancelled


class TimerHandle(Handle):
    """A callback that is due at a time of the loop's clock."""

    __slots__ = ("_when",)

    def __init__(self, when, callback, arguments, context):
        Handle.__init__(self, callback, arguments, context)
        self._when = when

    def when(self):
        """Return the time."""
        return self._when

    def __lt__(self, other):
        return self._when < other._when


class EventLoop:
    """One thread's loop."""

    def __init__(self):
        self._ready = deque()
        self._timers = []
        self._epoll = select.epoll()
        self._handles = {}
        self._signals = {}
        self._wakeup_fd = -1
        self._is_closed = False
        self.time = time.monotonic

    # -- what tasks and futures ask for ------------------------------------------------------------

    def get_debug(self):
        """There is no debug mode."""
        return False

    def is_closed(self):
        """Tell whether it has ended."""
        return self._is_closed

    def create_future(self):
        """Return a new future."""
        return Future(loop=self)

    def create_task(self, coroutine, *, name=None, context=None):
        """Run a coroutine."""
        return Task(coroutine, loop=self, name=name, context=context)

    def call_soon(self, callback, *arguments, context=None):
        """Call back in the next turn."""
        handle = Handle(callback, arguments, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay, callback, *arguments, context=None):
        """Call back after so many seconds."""
        return self.call_at(self.time() + delay, callback, *arguments, context=context)

    def call_at(self, when, callback, *arguments, context=None):
        """Call back at a time of the loop's clock."""
        timer = TimerHandle(when, callback, arguments, context)
        heappush(self._timers, timer)
        return timer

    def call_exception_handler(self, context):
        """Report what nobody has caught."""
        error = context.get("exception")
        told = "" if error is None else f": {type(error).__name__}: {error}"
        sys.stderr.write(f"{context.get('message')}{told}\n")
        if error is not None:
            sys.excepthook(type(error), error, error.__traceback__)

    # -- descriptors -------------------------------------------------------------------------------

    def add_reader(self, fd, callback, *arguments):
        """Call back whenever a descriptor can be read from."""
        self._watch(fd, 0, Handle(callback, arguments, None))

    def remove_reader(self, fd):
        """Stop that; tell whether it was so."""
        return self._watch(fd, 0, None)

    def add_writer(self, fd, callback, *arguments):
        """Call back whenever a descriptor can be written to."""
        self._watch(fd, 1, Handle(callback, arguments, None))

    def remove_writer(self, fd):
        """Stop that; tell whether it was so."""
        return self._watch(fd, 1, None)

    def _watch(self, fd, side, handle):
        if not isinstance(fd, int):
            fd = fd.fileno()
        if fd < 0:
            raise ValueError(f"Invalid file descriptor: {fd}")
        handles = self._handles.get(fd)
        is_new = handles is None
        if is_new:
            if handle is None:
                return False
            handles = self._handles[fd] = [None, None]
        before, handles[side] = handles[side], handle
        if before is not None:
            before.cancel()
        mask = (_READ if handles[0] else 0) | (_WRITE if handles[1] else 0)
        if not mask:
            del self._handles[fd]
            try:
                self._epoll.unregister(fd)
            except OSError as error:  # it is closed already
                if error.errno not in (errno.ENOENT, errno.EBADF):
                    raise
        elif is_new:
            try:
                self._epoll.register(fd, mask)
            except BaseException:
                del self._handles[fd]
                raise
        else:
            self._epoll.modify(fd, mask)
        return before is not None

    # -- signals -----------------------------------------------------------------------------------

    def add_signal_handler(self, number, callback, *arguments):
        """Call back, in a turn of the loop, when a signal has come."""
        if self._wakeup_fd < 0:
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._wakeup_fd = reader
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            self.add_reader(reader, self._on_signals)
        self._signals[number] = Handle(callback, arguments, None)
        signal.signal(number, _ignore)

    def remove_signal_handler(self, number):
        """Give a signal back to the system's default."""
        if self._signals.pop(number, None) is None:
            return False
        signal.signal(number, signal.SIG_DFL)
        return True

    def _on_signals(self):
        for number in os.read(self._wakeup_fd, 4096):
            handle = self._signals.get(number)
            if handle is not None:
                self._ready.append(handle)

    # -- running -----------------------------------------------------------------------------------

    def run_until_complete(self, coroutine):
        """Run until a coroutine has ended, and return its result."""
        _set_running_loop(self)
        try:
            task = self.create_task(coroutine)
            while not task.done():
                self._turn()
            return task.result()
        finally:
            _set_running_loop(None)

    def close(self):
        """End it."""
        self._is_closed = True
        self._epoll.close()

    def _turn(self):
        timers = self._timers
        while timers and timers[0]._is_cancelled:
            heappop(timers)
        if self._ready:
            wait_s = 0
        elif timers:
            wait_s = max(0, timers[0]._when - self.time())
        else:
            wait_s = -1
        ready = self._ready
        for fd, mask in self._epoll.poll(wait_s):
            handles = self._handles.get(fd)
            if handles is None:
                continue
            reader, writer = handles
            if reader is not None and mask & (_READ | _ERROR):
                ready.append(reader)
            if writer is not None and mask & (_WRITE | _ERROR):
                ready.append(writer)
        if timers:
            now = self.time()
            while timers and timers[0]._when <= now:
                ready.append(heappop(timers))
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._is_cancelled:
                try:
                    handle._context.run(handle._callback, *handle._arguments)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    message = f"Exception in callback {handle._callback!r}"
                    self.call_exception_handler({"message": message, "exception": error})


def run(coroutine):
    """Run a coroutine in a loop of its own; what is left when it ends is left."""
    loop = EventLoop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def _ignore(number, frame):
    """A signal needs a handler to be seen at all."""


__all__ = ["CancelledError", "EventLoop", "Handle", "TimerHandle", "run"]
