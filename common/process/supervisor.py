"""A small parent for the daemon, where no systemd is there to keep its descriptors, or no kernel to tell exit codes.

It speaks the service manager's protocol (sd_notify(3)) with its one child, over a pair of sockets, keeps what the
child stores, hands it back to the next child, and is the subreaper: what a dead daemon leaves behind becomes its child,
and how that ends goes into the exit log before it is reaped. Under systemd it passes messages and descriptors on, so
that they outlive it too.

It is the one process that must not fail, and its memory is spent on every node: plain blocking code, and it loads
neither typing nor contextlib nor json, which would be 1.5 MiB more. On SIGHUP it replaces itself with the installed
version and then restarts the daemon.
"""

from __future__ import annotations

import array
import fcntl
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence

from common.descriptors.listen import FIRST_FD, taken_from_environment
from common.descriptors.names import EXIT_LOG_NAME
from common.linux.prctl import set_child_subreaper, set_parent_death_signal
from common.linux.proc_stat import start_time
from common.process.exit_log import SUPERVISOR, ExitLog, LoggedExit, raw_status_of

FLAG = "--supervise"
CHECK_FLAG = "--check"
"""With FLAG: load what a supervisor needs, and end. Asked of a new version before it is relied upon."""

_HANDOVER = "SANDBOXD_SUPERVISOR_STATE"
_OPEN_FILES = 65536
_MESSAGE_BYTES = 4096
_MESSAGE_FDS = 253  # SCM_MAX_FD, unix(7)
_MESSAGES_PER_WAKEUP = 100
# As much as the kernel grants: some 400 messages, where a datagram socket with an address takes ten.
_QUEUE_BYTES = 1 << 20
# Their names are one environment string, which the kernel limits to 128 KiB (MAX_ARG_STRLEN, execve(2)).
_MOST_STORED = 14000
_LONGEST_NAME = 8
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 5.0
# One that serves between its deaths is missed while it is away, however often it dies.
_LONGEST_DELAY_OF_READY_S = 0.5
_STABLE_S = 10.0
_STOP_LIMIT_S = 20.0
_CHECK_LIMIT_S = 10.0
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, *_PASSED_ON)
# What the child says about itself and not about the service, such as MAINPID, is not passed on.
_PASSED_KEYS = frozenset({"READY", "STATUS", "FDSTORE", "FDSTOREREMOVE", "FDNAME", "FDPOLL"})

_BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv[1]); from common.process.supervisor import main; main()"
_IMPORT_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def supervise(flags: Sequence[str]) -> None:
    """Become the supervisor of this very program without FLAG; does not return, unless asked by CHECK_FLAG.

    `flags` is how the interpreter was called (`sys.orig_argv`). The supervisor runs without the packages and the
    start-up code of the environment, which are worth 1 MiB.
    """
    if CHECK_FLAG in flags:
        return
    command = [sys.executable, *(flag for flag in flags[1:] if flag != FLAG)]
    argv = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, _IMPORT_ROOT, FLAG, *command]
    os.execv(sys.executable, argv)


def main() -> None:
    """Supervise the command behind FLAG; exit with the code that is due."""
    sys.exit(Supervisor(sys.argv[sys.argv.index(FLAG) + 1 :]).run())


class Supervisor:
    """Runs one command, again and again, until told to stop."""

    def __init__(self, command: Sequence[str]) -> None:
        """Take over what the service manager, or this program before it replaced itself, has handed to us."""
        self._command = list(command)
        self._outer = os.environ.get("NOTIFY_SOCKET", "")
        self._stored = taken_from_environment()
        # Whoever has stored something was ready; the log is our own.
        self._was_ready = any(name != EXIT_LOG_NAME for name in self._stored)
        self._is_ready = False
        self._exits: ExitLog | None = None
        self._take_handover()
        for fd in self._stored.pop(EXIT_LOG_NAME, []):
            self._exits = ExitLog(fd, SUPERVISOR)
        if self._exits is None:
            self._exits = ExitLog.create()
            self._pass_on([f"FDSTORE=1\nFDPOLL=0\nFDNAME={EXIT_LOG_NAME}"], [self._exits.fd])
        self._pid = 0
        self._stopping = False
        self._upgrading = False
        self._delay_s = _FIRST_DELAY_S
        self._started_at = 0.0
        self._restart_at: float | None = None
        self._kill_at: float | None = None
        self._check_pid = 0
        self._check_until: float | None = None
        self._status = 0
        self._notify: socket.socket | None = None
        self._epoll = select.epoll()
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._signals: list[int] = []

    def run(self) -> int:
        """Supervise; return the exit code for this process."""
        set_child_subreaper()
        _allow_descriptors()
        for number in _HANDLED:
            signal.signal(number, lambda number, _frame: self._signals.append(number))
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        # What has ended while this program replaced itself sends no signal any more.
        self._reap()
        self._spawn()
        self._epoll.register(self._wake, select.EPOLLIN)
        while self._pid or self._restart_at is not None:
            for fd, _ in self._epoll.poll(self._timeout_s()):
                if fd == self._wake:
                    os.read(self._wake, 4096)
                else:
                    self._drain()
            self._handle_signals()
            self._reap()
            self._handle_time()
        return self._status

    # -- the child -----------------------------------------------------------------------------------

    def _spawn(self) -> None:
        assert self._exits is not None
        self._restart_at = None
        self._started_at = time.monotonic()
        self._is_ready = False
        names = [name for name, fds in self._stored.items() for _ in fds]
        fds = [fd for fds in self._stored.values() for fd in fds]
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": f"fd:{FIRST_FD + len(fds) + 1}",
            "FDSTORE": str(_MOST_STORED),
            "LISTEN_FDS": str(len(fds) + 1),
            "LISTEN_FDNAMES": ":".join([*names, EXIT_LOG_NAME]),
        }
        own = os.getpid()
        # A signal for the child that comes before the exec waits until it has the meaning that it has there.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            with self._listen() as notify:
                pid = os.fork()
                if pid == 0:
                    try:
                        _execute(self._command, environment, [*fds, self._exits.fd, notify.fileno()], own)
                    finally:
                        os._exit(127)
                self._pid = pid
        except OSError as error:
            _say("error", "daemon.not_started", error=error, again_in_s=self._delay_s)
            self._hang_up()
            self._restart_later()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    def _restart_later(self) -> None:
        self._restart_at = time.monotonic() + self._delay_s
        self._delay_s = min(self._delay_s * 2, _LONGEST_DELAY_S)

    def _reap(self) -> None:
        assert self._exits is not None
        while (zombie := _peek()) is not None:
            if zombie.si_pid == self._pid:
                # What it has said before its death counts.
                while self._drain():
                    pass
                self._hang_up()
                _, status = os.waitpid(zombie.si_pid, 0)
                self._on_child_end(os.waitstatus_to_exitcode(status))
            elif zombie.si_pid == self._check_pid:
                _, status = os.waitpid(zombie.si_pid, 0)
                self._on_check_end(status == 0)
            else:
                try:
                    started = start_time(zombie.si_pid)
                    self._exits.append(
                        LoggedExit(zombie.si_pid, started, raw_status_of(zombie), time.time_ns())
                    )
                except OSError as error:
                    _say("error", "exit.not_logged", pid=zombie.si_pid, error=error)
                os.waitpid(zombie.si_pid, 0)

    def _on_child_end(self, code: int) -> None:
        self._pid = 0
        self._kill_at = None
        if self._stopping:
            self._status = 0 if code == -signal.SIGTERM else code if code >= 0 else 128 - code
            return
        if self._upgrading:
            self._upgrading = False
            self._replace_self()
            self._restart_at = time.monotonic()
            return
        if code >= 0 and not self._was_ready:
            self._status = code
            return
        lived_s = time.monotonic() - self._started_at
        if lived_s > _STABLE_S:
            self._delay_s = _FIRST_DELAY_S
        elif self._is_ready:
            self._delay_s = min(self._delay_s, _LONGEST_DELAY_OF_READY_S)
        _say(
            "warning",
            "daemon.died",
            exit_code=code,
            lived_s=round(lived_s, 1),
            restarted_in_s=self._delay_s,
            descriptors=self._count(),
        )
        self._restart_later()

    # -- another version of itself -------------------------------------------------------------------

    def _upgrade(self) -> None:
        """Begin with trying whether what is installed now can at least be loaded: after the exec it is too late."""
        if self._stopping or self._upgrading or self._check_pid:
            return
        try:
            self._check_pid = os.posix_spawn(self._command[0], [*self._command, FLAG, CHECK_FLAG], os.environ)
        except OSError:
            self._on_check_end(False)
        else:
            self._check_until = time.monotonic() + _CHECK_LIMIT_S

    def _on_check_end(self, is_loadable: bool) -> None:
        self._check_pid = 0
        self._check_until = None
        if self._stopping:
            return
        if not is_loadable:
            _say("error", "supervisor.not_replaced", reason="the installed version does not start")
            return
        self._upgrading = True
        if self._pid:
            self._signal_child(signal.SIGTERM)
        else:
            self._on_child_end(0)

    def _replace_self(self) -> None:
        """Execute the installed version of this program in this very process: children and pid stay."""
        assert self._exits is not None
        groups = {**self._stored, EXIT_LOG_NAME: [self._exits.fd]}
        lines = [" ".join([name, *map(str, fds)]) for name, fds in groups.items()]
        kept = [fd for fds in groups.values() for fd in fds]
        state = -1
        try:
            state = os.memfd_create("supervisor-state")
            kept.append(state)
            os.write(state, "\n".join([f"{os.getpid()} {int(self._was_ready)}", *lines]).encode())
            _say("info", "supervisor.replaced", descriptors=self._count())
            for fd in kept:
                os.set_inheritable(fd, True)
            environment = {**os.environ, _HANDOVER: str(state)}
            # A SIGTERM of this moment waits for the new version, also one that is noted and not handled yet.
            signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
            for number in {signal.SIGTERM, signal.SIGINT}.intersection(self._signals):
                signal.raise_signal(number)
            os.execve(self._command[0], [*self._command, FLAG], environment)
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            _say("error", "supervisor.not_replaced", error=error)
            for fd in kept:
                os.set_inheritable(fd, False)
            if state >= 0:
                os.close(state)

    def _take_handover(self) -> None:
        number = os.environ.pop(_HANDOVER, "")
        if not number:
            return
        with open(int(number), "rb") as file:
            lines = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode().split("\n")
        pid, was_ready = lines[0].split()[:2]
        if int(pid) != os.getpid():
            return
        self._was_ready = was_ready == "1"
        for line in lines[1:]:
            name, *numbers = line.split(" ")
            self._stored[name] = [int(number) for number in numbers]
            for fd in self._stored[name]:
                os.set_inheritable(fd, False)

    # -- what the child says -------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        """Return what the next child shall talk to: the other end of a pair, which nobody else can reach."""
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._notify, notify = socket.socketpair(socket.AF_UNIX, kind)
        notify.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE_BYTES)
        self._epoll.register(self._notify.fileno(), select.EPOLLIN)
        return notify

    def _hang_up(self) -> None:
        if self._notify is not None:
            self._notify.close()  # which takes it out of the epoll, too
            self._notify = None

    def _drain(self) -> bool:
        """Handle some of what the child has said; tell whether there may be more."""
        notify = self._notify
        if notify is None:
            return False
        for _ in range(_MESSAGES_PER_WAKEUP):
            try:
                data, ancillary, flags, _ = notify.recvmsg(
                    _MESSAGE_BYTES, socket.CMSG_SPACE(_MESSAGE_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return False
            fds = _descriptors_in(ancillary)
            if not data and not fds:
                self._hang_up()
                return False
            if flags & socket.MSG_CTRUNC:
                _say("error", "descriptors.not_kept", reason="too many open files", message=repr(data[:80]))
            self._handle(data, fds)
        return True

    def _handle(self, data: bytes, fds: list[int]) -> None:
        lines = [line for line in data.decode(errors="replace").split("\n") if "=" in line]
        fields = dict(line.split("=", 1) for line in lines)
        name = fields.get("FDNAME", "stored")
        if "BARRIER" in fields:
            _close(fds)
            return
        if fields.get("READY") == "1":
            self._was_ready = self._is_ready = True
        if fields.get("FDSTORE") == "1" and not self._can_store(name, fds):
            _close(fds)
            return
        # That the child stops means nothing to a manager of ours, unless we do.
        known = _PASSED_KEYS | {"STOPPING"} if self._stopping else _PASSED_KEYS
        self._pass_on([line for line in lines if line.split("=", 1)[0] in known], fds)
        if fields.get("FDSTOREREMOVE") == "1":
            _close(self._stored.pop(name, []))
        if fields.get("FDSTORE") == "1":
            self._stored.setdefault(name, []).extend(fds)
        else:
            _close(fds)

    def _can_store(self, name: str, fds: list[int]) -> bool:
        fits = self._count() + len(fds) <= _MOST_STORED
        valid = 0 < len(name) <= _LONGEST_NAME and name.isalnum() and name != EXIT_LOG_NAME
        if not fits or not valid:
            _say(
                "error",
                "descriptors.not_kept",
                group=name,
                reason="not a name of a group" if not valid else f"more than {_MOST_STORED}",
            )
        return fits and valid

    def _count(self) -> int:
        return sum(map(len, self._stored.values()))

    def _pass_on(self, lines: list[str], fds: list[int]) -> None:
        if not self._outer or not lines:
            return
        address = "\0" + self._outer[1:] if self._outer.startswith("@") else self._outer
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.sendmsg(["\n".join(lines).encode()], rights, socket.MSG_NOSIGNAL, address)
        except OSError as error:
            _say("error", "manager.not_told", error=error, message=lines[0])

    # -- signals and time ----------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop()
            elif number == signal.SIGHUP:
                self._upgrade()
            elif number in _PASSED_ON:
                self._signal_child(number)

    def _stop(self) -> None:
        self._stopping = True
        self._restart_at = None
        if not self._outer and self._stored:
            _say(
                "warning",
                "connections.lost",
                reason="told to stop, and nobody keeps them",
                descriptors=self._count(),
            )
        if self._check_pid:
            os.kill(self._check_pid, signal.SIGKILL)
        self._signal_child(signal.SIGTERM)

    def _signal_child(self, number: int) -> None:
        if not self._pid:
            return
        # Our own child, not reaped: its pid is nobody else's.
        os.kill(self._pid, number)
        if number == signal.SIGTERM and self._kill_at is None:
            self._kill_at = time.monotonic() + _STOP_LIMIT_S

    def _timeout_s(self) -> float:
        due = [at for at in (self._restart_at, self._kill_at, self._check_until) if at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else -1

    def _handle_time(self) -> None:
        now = time.monotonic()
        if self._restart_at is not None and now >= self._restart_at:
            self._spawn()
        if self._check_until is not None and now >= self._check_until:
            self._check_until = None
            os.kill(self._check_pid, signal.SIGKILL)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            _say("error", "daemon.killed", reason=f"it did not end within {_STOP_LIMIT_S:g} s")
            self._signal_child(signal.SIGKILL)


def _execute(command: list[str], environment: dict[str, str], fds: list[int], parent: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in (*_HANDLED, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    # A daemon without us would keep the type locked for the next one, and its descriptors from it.
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        return
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


def _descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) // fds.itemsize * fds.itemsize])
    return list(fds)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _say(severity: str, event: str, **fields: object) -> None:
    """Write a line as `common.log` does, which would be 1.3 MiB, loaded while it is perhaps being replaced."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    line = {"ts": f"{moment}.{nanoseconds // 1000:06d}Z", "level": severity, "event": event, **fields}
    text = ",".join(f'"{name}":{_json(value)}' for name, value in line.items())
    try:
        os.write(2, f"{{{text}}}\n".encode(errors="backslashreplace"))
    except OSError:
        return  # a log that cannot be written stops nobody


def _json(value: object) -> str:
    if isinstance(value, int | float):
        return str(value)
    # Quotes, backslashes and control characters are all that JSON wants escaped (RFC 8259, section 7).
    return '"' + "".join(f"\\u{ord(c):04x}" if c < " " or c in '"\\' else c for c in str(value)) + '"'
