"""A small parent for the daemon, where no systemd is there to keep its descriptors, or no kernel to tell exit codes.

It speaks the service manager's protocol (sd_notify(3)) to its one child, keeps what the child stores, hands it back to
the next child, and is the subreaper: what a dead daemon leaves behind becomes its child, and how that ends goes into
the exit log before it is reaped. Under systemd it passes messages and descriptors on, so that they outlive it too.

Everything here is plain blocking code on one epoll: it is the one process that must not fail, and its memory is
spent on every node. On SIGHUP it replaces itself with the installed version and then restarts the daemon.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final

from common.descriptors.listen import FIRST_FD, taken_from_environment
from common.descriptors.names import EXIT_LOG_NAME
from common.linux.pidfd import start_time
from common.linux.procs import set_child_subreaper
from common.log import get_logger
from common.process.exit_log import ExitLog, LoggedExit

_OPEN_FILES: Final = 65536
_MESSAGE_BYTES: Final = 4096
_MESSAGE_FDS: Final = 253  # SCM_MAX_FD, unix(7)
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 5.0
_STABLE_S: Final = 10.0
_STOP_LIMIT_S: Final = 20.0
_CREDENTIALS = struct.Struct("=iII")
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)

log = get_logger()


class Supervisor:
    """Runs one command, again and again, until told to stop."""

    def __init__(self, command: Sequence[str]) -> None:
        """Take over what the service manager, or this program before it replaced itself, has handed to us."""
        self._command = list(command)
        self._outer = os.environ.get("NOTIFY_SOCKET", "")
        self._stored = taken_from_environment()
        self._exits = self._take_exit_log()
        self._pid = 0
        self._was_ready = False
        self._stopping = False
        self._upgrading = False
        self._delay_s = _FIRST_DELAY_S
        self._started_at = 0.0
        self._restart_at: float | None = None
        self._status = 0
        self._kill_at: float | None = None
        # An address of the kernel's choosing: unlike a path it leaves nothing behind, and who may send is
        # decided by the credentials of each message.
        self._notify = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notify.bind("")
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._signals: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, *_PASSED_ON):
            signal.signal(number, self._note)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def run(self) -> int:
        """Supervise; return the exit code for this process."""
        set_child_subreaper()
        _allow_descriptors()
        self._spawn()
        epoll = select.epoll()
        epoll.register(self._wake, select.EPOLLIN)
        epoll.register(self._notify.fileno(), select.EPOLLIN)
        while self._pid or self._restart_at is not None:
            for fd, _ in epoll.poll(self._timeout_s()):
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                else:
                    self._drain()
            self._handle_signals()
            self._reap()
            self._handle_time()
        return self._status

    # -- the child -----------------------------------------------------------------------------------

    def _spawn(self) -> None:
        self._restart_at = None
        self._started_at = time.monotonic()
        names = [name for name, fds in self._stored.items() for _ in fds] + [EXIT_LOG_NAME]
        fds = [fd for fds in self._stored.values() for fd in fds] + [self._exits.fd]
        address = self._notify.getsockname()
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": "@" + os.fsdecode(address[1:]),
            "LISTEN_FDS": str(len(fds)),
            "LISTEN_FDNAMES": ":".join(names),
        }
        pid = os.fork()
        if pid == 0:
            try:
                _execute(self._command, environment, fds)
            finally:
                os._exit(127)
        self._pid = pid

    def _reap(self) -> None:
        while (zombie := _peek()) is not None:
            if zombie.si_pid == self._pid:
                # What it has said before its death counts.
                self._drain()
                _, status = os.waitpid(zombie.si_pid, 0)
                self._on_child_end(os.waitstatus_to_exitcode(status))
            else:
                with contextlib.suppress(ProcessLookupError):
                    started = start_time(zombie.si_pid)
                    self._exits.append(
                        LoggedExit(zombie.si_pid, _raw_status(zombie), started, time.time_ns())
                    )
                os.waitpid(zombie.si_pid, 0)

    def _on_child_end(self, code: int) -> None:
        self._pid = 0
        self._kill_at = None
        if self._upgrading:
            self._replace_self()
        lived_s = time.monotonic() - self._started_at
        if self._stopping or code == 0 or (code > 0 and not self._was_ready):
            self._status = 0 if self._stopping else code
            return
        if lived_s > _STABLE_S:
            self._delay_s = _FIRST_DELAY_S
        log.warning("daemon.died", exit_code=code, lived_s=round(lived_s, 1), restarted_in_s=self._delay_s)
        self._restart_at = time.monotonic() + self._delay_s
        self._delay_s = min(self._delay_s * 2, _LONGEST_DELAY_S)

    def _replace_self(self) -> None:
        """Execute the installed version of this program in this very process: children and pid stay."""
        self._stored[EXIT_LOG_NAME] = [self._exits.fd]
        names = [name for name, fds in self._stored.items() for _ in fds]
        fds = [fd for fds in self._stored.values() for fd in fds]
        environment = {
            **os.environ,
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(fds)),
            "LISTEN_FDNAMES": ":".join(names),
        }
        log.info("supervisor.replaced", descriptors=len(fds))
        signal.set_wakeup_fd(-1)
        _place(fds)
        os.execve(sys.executable, sys.orig_argv, environment)

    # -- what it says --------------------------------------------------------------------------------

    def _drain(self) -> None:
        while True:
            try:
                data, ancillary, _flags, _ = self._notify.recvmsg(
                    _MESSAGE_BYTES,
                    socket.CMSG_SPACE(_MESSAGE_FDS * 4) + socket.CMSG_SPACE(_CREDENTIALS.size),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return
            fds, sender = _parse(ancillary)
            if sender != self._pid or not self._pid:
                _close(fds)
                continue
            self._handle(data, fds)

    def _handle(self, data: bytes, fds: list[int]) -> None:
        fields = dict(
            line.split("=", 1) for line in data.decode(errors="replace").splitlines() if "=" in line
        )
        name = fields.get("FDNAME", "stored")
        if "BARRIER" in fields:
            _close(fds)
            return
        self._pass_on(data, fds)
        if fields.get("READY") == "1":
            self._was_ready = True
        if fields.get("FDSTOREREMOVE") == "1":
            _close(self._stored.pop(name, []))
        if fields.get("FDSTORE") == "1":
            self._stored.setdefault(name, []).extend(fds)
        else:
            _close(fds)

    def _pass_on(self, data: bytes, fds: list[int]) -> None:
        if not self._outer:
            return
        address = "\0" + self._outer[1:] if self._outer.startswith("@") else self._outer
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendmsg([data], rights, socket.MSG_NOSIGNAL, address)

    def _take_exit_log(self) -> ExitLog:
        for fd in self._stored.pop(EXIT_LOG_NAME, []):
            exits = ExitLog(fd)
            exits.resume()
            return exits
        exits = ExitLog.create()
        self._pass_on(f"FDSTORE=1\nFDPOLL=0\nFDNAME={EXIT_LOG_NAME}".encode(), [exits.fd])
        return exits

    # -- signals and time ----------------------------------------------------------------------------

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stopping = True
                self._restart_at = None
                if not self._outer and self._stored:
                    log.warning(
                        "connections.lost", reason="stopped, and nobody keeps them", groups=len(self._stored)
                    )
                self._signal_child(signal.SIGTERM)
            elif number == signal.SIGHUP:
                self._upgrading = True
                if self._pid:
                    self._signal_child(signal.SIGTERM)
                else:
                    self._replace_self()
            elif number in _PASSED_ON:
                self._signal_child(number)

    def _signal_child(self, number: int) -> None:
        if not self._pid:
            return
        # Our own child, not reaped: its pid is nobody else's.
        os.kill(self._pid, number)
        if number == signal.SIGTERM:
            self._kill_at = time.monotonic() + _STOP_LIMIT_S

    def _timeout_s(self) -> float:
        due = [at for at in (self._restart_at, self._kill_at) if at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else -1

    def _handle_time(self) -> None:
        now = time.monotonic()
        if self._restart_at is not None and now >= self._restart_at:
            self._spawn()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            log.error("daemon.killed", reason=f"it did not end within {_STOP_LIMIT_S:g} s")
            self._signal_child(signal.SIGKILL)


def supervise() -> int:
    """Run this very program without --supervise below a supervisor; return the exit code."""
    flags = [flag for flag in sys.orig_argv[1:] if flag != "--supervise"]
    return Supervisor([sys.executable, *flags]).run()


def _execute(command: list[str], environment: dict[str, str], fds: list[int]) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, *_PASSED_ON):
        signal.signal(number, signal.SIG_DFL)
    environment["LISTEN_PID"] = str(os.getpid())
    _place(fds)
    os.execve(command[0], command, environment)


def _place(fds: list[int]) -> None:
    """Give these the numbers from 3 on, and let them survive an exec."""
    beyond = FIRST_FD + len(fds)
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, beyond) for fd in fds]
    for number, fd in enumerate(moved, FIRST_FD):
        os.dup2(fd, number)


def _allow_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


def _peek() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def _raw_status(zombie: os.waitid_result) -> int:
    if zombie.si_code == os.CLD_EXITED:
        return (zombie.si_status & 0xFF) << 8
    return zombie.si_status | (0x80 if zombie.si_code == os.CLD_DUMPED else 0)


def _parse(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], int]:
    fds, sender = array.array("i"), 0
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) // fds.itemsize * fds.itemsize])
        elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            sender = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
    return list(fds), sender


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
