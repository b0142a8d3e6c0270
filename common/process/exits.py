"""The ends of processes: one callback per watched process, and no zombie left behind.

The daemon is a child subreaper: besides its own children it inherits what OCI runtimes leave behind.
One epoll descriptor carries the pidfds of all watches, so a watch costs a descriptor and a small object;
nothing polls while nothing ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.errors import AlreadyExists, NotFound
from common.linux import pidfd as pidfds
from common.linux.features import Feature, allowed
from common.process.exit_log import ExitLog, LoggedExit, raw_status_of

UNKNOWN_EXIT_CODE = 255

# A pidfd can become readable before the process is reparented to us (2-10 ms were seen), hence the quick
# retries; a foreign parent may take its time to reap. Newer kernels tell when it has (EPOLLHUP), without a limit.
_RETRY_DELAYS_S = (0.001, 0.002, 0.005, 0.010, 0.030, 0.060)
_SLOW_RETRY_S = 0.1
_SLOW_RETRIES = 50
# Our supervisor surely reaps, though perhaps not while it or the whole machine is busy.
_SLOW_RETRIES_SUPERVISED = 600

# SIGCHLDs come in bursts (an OCI command, its helpers, the container): one sweep serves them all.
_SWEEP_DELAY_S = 0.05

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended.

    `code` is 0..255, 128 + signal number when a signal ended it, 255 with `known=False` when nobody can
    tell any more. `exited_at_ns` is the wall clock in ns since the epoch when the daemon, or its supervisor,
    noticed.
    """

    code: int
    exited_at_ns: int
    known: bool = True


Callback = Callable[[ExitStatus], None]


class Watch:
    """A process whose end is awaited. Owns its pidfd until the callback ran or `cancel` was called."""

    __slots__ = ("_attempt", "_callback", "_watcher", "pid", "pidfd", "start_time")

    def __init__(
        self, watcher: ExitWatcher, pid: int, pidfd: int, callback: Callback, start_time: int
    ) -> None:
        self._watcher = watcher
        self._callback = callback
        self._attempt = 0
        self.pid = pid
        self.pidfd = pidfd
        self.start_time = start_time

    def signal(self, signum: int) -> None:
        """Send a signal to exactly this process. Raises NotFound once it is gone."""
        try:
            if self.pidfd < 0:
                raise ProcessLookupError
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            raise NotFound(f"process {self.pid} has ended") from None

    def cancel(self) -> None:
        """Forget the process: no callback any more; if it is our child, the sweep reaps it later."""
        self._watcher._forget(self)


class ExitWatcher:
    """Tells the end of processes to callbacks and reaps orphans. One per daemon, made inside its loop.

    Installs the handler of SIGCHLD, so it lives in the main thread.
    """

    __slots__ = ("_adoptions", "_by_fd", "_by_pid", "_epoll", "_log", "_loop", "_sweep_timer")

    def __init__(self, log: ExitLog | None = None) -> None:
        """:param log: where a supervisor writes how those have ended that were its children, not ours."""
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._by_fd: dict[int, Watch] = {}
        self._by_pid: dict[int, Watch] = {}
        self._adoptions = 0
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._on_ready)
        self._loop.add_signal_handler(signal.SIGCHLD, self._sweep_soon)

    @property
    def watch_count(self) -> int:
        """The number of processes whose end is awaited."""
        return len(self._by_fd)

    def watch(self, pid: int, callback: Callback, pidfd: int | None = None, start_time: int = 0) -> Watch:
        """Call `callback` once, from the event loop, when the process ends.

        Works for children, for processes that will be reparented to us, and for those of other parents: their
        exit code needs Linux 6.15, or an exit log and the `start_time` (ticks since boot), else it is unknown.
        Takes over `pidfd`, or opens one.
        Raises NotFound when there is no such process, AlreadyExists when it is watched; a `pidfd` that
        was passed stays the caller's then.
        """
        if pid in self._by_pid:
            raise AlreadyExists(f"process {pid} is watched already")
        if pidfd is None:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                raise NotFound(f"there is no process {pid}") from None
        watch = Watch(self, pid, pidfd, callback, start_time)
        self._epoll.register(pidfd, select.EPOLLIN)
        self._by_fd[pidfd] = watch
        self._by_pid[pid] = watch
        return watch

    def ended(self, pid: int, start_time: int, pidfd: int | None) -> ExitStatus | None:
        """Return what can be told of a process that is gone already: by a pidfd of it, or by its start time.

        The time is that of the exit log, or now. None: nobody knows anything.
        """
        logged = self._log.find(pid, start_time) if self._log is not None and start_time else None
        if logged is not None:
            return ExitStatus(_code_of_wait_status(logged.raw_status), logged.exited_at_ns)
        raw = pidfds.exit_info(pidfd) if pidfd is not None else None
        return ExitStatus(_code_of_wait_status(raw), time.time_ns()) if raw is not None else None

    def ended_since(self, pid: int, since_ns: int) -> ExitStatus | None:
        """Return how the first process of a pid has ended that was started after a time (ns since the epoch); None:
        nobody knows.
        """
        if self._log is None:
            return None
        boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        # A tick less: files have the time of the last timer interrupt.
        started_after = int((since_ns / 1e9 - boot_s) * _TICKS_PER_S) - 1
        logged = self._log.find_first(pid, started_after)
        if logged is None:
            return None
        return ExitStatus(_code_of_wait_status(logged.raw_status), logged.exited_at_ns)

    @contextlib.contextmanager
    def adoption(self) -> Iterator[None]:
        """While open, leave unknown zombies alone: one may be the child that the caller is about to claim."""
        self._adoptions += 1
        try:
            yield
        finally:
            self._adoptions -= 1
            if not self._adoptions:
                self._sweep_soon()

    def close(self) -> None:
        """Forget all watches and give SIGCHLD back; harmless when closed already."""
        if self._epoll.closed:
            return
        for watch in list(self._by_fd.values()):
            self._forget(watch)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._loop.remove_signal_handler(signal.SIGCHLD)
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _on_ready(self) -> None:
        for fd, _events in self._epoll.poll(0):
            # A callback of this very batch may have cancelled the watch.
            watch = self._by_fd.get(fd)
            if watch is not None:
                self._collect(watch)

    def _collect(self, watch: Watch) -> None:
        if watch.pidfd < 0:
            return
        try:
            status = self._reap(watch)
        except ChildProcessError:
            # Asked first: whoever reaps it has told the log, or the kernel its record, before.
            is_reaped = _is_reaped(watch.pidfd)
            status = self.ended(watch.pid, watch.start_time, watch.pidfd)
            if status is None and not is_reaped:
                self._collect_later(watch)
                return
            status = status or _unknown()
        if status is not None:
            self._complete(watch, status)

    def _reap(self, watch: Watch) -> ExitStatus | None:
        """Collect our own child, if it has ended. Raises ChildProcessError when it is not ours."""
        if self._log is None:
            result = os.waitid(os.P_PIDFD, watch.pidfd, os.WEXITED | os.WNOHANG)
            return ExitStatus(_code_of_siginfo(result), time.time_ns()) if result is not None else None
        result = os.waitid(os.P_PIDFD, watch.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is None:
            return None
        status = ExitStatus(_code_of_siginfo(result), time.time_ns())
        # Reaped, its end is known to us alone until it is on record, and we may die in between.
        with contextlib.suppress(OSError):
            started = pidfds.start_time(watch.pid)
            self._log.append(LoggedExit(watch.pid, started, raw_status_of(result), status.exited_at_ns))
        os.waitid(os.P_PIDFD, watch.pidfd, os.WEXITED | os.WNOHANG)
        return status

    def _collect_later(self, watch: Watch) -> None:
        if watch._attempt == 0:
            # Events 0 leaves only EPOLLHUP, which comes when somebody reaps the process; EPOLLIN would spin.
            if allowed(Feature.PIDFD_HUP):
                self._epoll.modify(watch.pidfd, 0)
            else:
                self._epoll.unregister(watch.pidfd)
        slow = watch._attempt - len(_RETRY_DELAYS_S)
        if slow >= 0 and allowed(Feature.PIDFD_HUP) and _tells_reaping(watch.pidfd, self._epoll):
            return
        if slow >= (_SLOW_RETRIES if self._log is None else _SLOW_RETRIES_SUPERVISED):
            self._complete(watch, _unknown())
            return
        delay_s = _RETRY_DELAYS_S[watch._attempt] if slow < 0 else _SLOW_RETRY_S
        watch._attempt += 1
        self._loop.call_later(delay_s, self._collect, watch)

    def _complete(self, watch: Watch, status: ExitStatus) -> None:
        self._forget(watch)
        watch._callback(status)

    def _forget(self, watch: Watch) -> None:
        if watch.pidfd < 0:
            return
        del self._by_fd[watch.pidfd]
        del self._by_pid[watch.pid]
        # A copy of the pidfd elsewhere (a descriptor store) would keep a closed one registered.
        with contextlib.suppress(FileNotFoundError):
            self._epoll.unregister(watch.pidfd)
        os.close(watch.pidfd)
        watch.pidfd = -1

    def _sweep_soon(self) -> None:
        if self._sweep_timer is None and not self._epoll.closed:
            self._sweep_timer = self._loop.call_later(_SWEEP_DELAY_S, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        while (zombie := _peek_zombie()) is not None:
            watch = self._by_pid.get(zombie)
            if watch is not None:
                self._collect(watch)
                if watch.pidfd >= 0:
                    return
            elif self._adoptions:
                # The kernel would show the same zombie again; closing the adoption sweeps anew.
                return
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOHANG)


def _unknown() -> ExitStatus:
    return ExitStatus(UNKNOWN_EXIT_CODE, time.time_ns(), known=False)


def _tells_reaping(pidfd: int, epoll: select.epoll) -> bool:
    """Tell whether EPOLLHUP comes when the process is reaped. It came with pidfs, in Linux 6.9; before, pidfds were on
    the device of all anonymous inodes, as an epoll still is."""
    return os.fstat(pidfd).st_dev != os.fstat(epoll.fileno()).st_dev


def _is_reaped(pidfd: int) -> bool:
    """Tell whether nothing is left of a process, not even a zombie (pidfd_send_signal(2), ESRCH)."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _peek_zombie() -> int | None:
    try:
        result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return result.si_pid if result is not None else None


def _code_of_siginfo(result: os.waitid_result) -> int:
    if result.si_code == os.CLD_EXITED:
        return result.si_status & 0xFF
    return 128 + result.si_status


def _code_of_wait_status(raw: int) -> int:
    code = os.waitstatus_to_exitcode(raw)
    return code if code >= 0 else 128 - code
