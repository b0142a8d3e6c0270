"""The program that makes the namespaces of `pod_holder` from inside: single-threaded, run once, then gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from typing import Any, NoReturn

from common.errors import InvalidArgument
from common.linux import _libc
from common.linux.flags import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC
from common.linux.mounts import pivot_to_working_directory
from common.linux.namespaces import enter
from common.linux.privileges import drop_privileges
from common.linux.sysctls import write_sysctls

_PACKET_BYTES = 64 * 1024
_CLONE_FLAGS = {"ipc": _libc.CLONE_NEWIPC, "uts": _libc.CLONE_NEWUTS, "pid": _libc.CLONE_NEWPID}

_UNPRIVILEGED_ID = 65535
_MFD_EXEC = 0x10
_INIT_NAME = "sandboxd-pod-init"
# Newer kernels show it as the command name, of which they keep 15 bytes, after "memfd:".
_FILE_NAME = "pod-init"
_PREPARED = b"\n"


def main() -> NoReturn:
    """Serve one request that comes over stdin, then exit: 0 when the daemon confirmed, else 1."""
    connection = socket.socket(fileno=0)
    init: Init | None = None
    try:
        init = _serve(connection)
        confirmed = bool(connection.recv(_PACKET_BYTES))
        if confirmed and init is not None:
            init.release()
    except InvalidArgument as error:
        confirmed = False
        _send(connection, {"invalid": str(error)})
    except OSError as error:
        confirmed = False
        _send(
            connection,
            {"errno": error.errno or 0, "text": error.strerror or str(error), "path": error.filename},
        )
    except Exception as error:
        confirmed = False
        _send(connection, {"internal": repr(error)})
    if not confirmed and init is not None:
        os.kill(init.pid, signal.SIGKILL)
    os._exit(0 if confirmed else 1)


def _serve(connection: socket.socket) -> Init | None:
    packet, fds, _, _ = socket.recv_fds(connection, _PACKET_BYTES, 1)
    request: dict[str, Any] = json.loads(packet)
    if fds:
        _libc.setns(fds[0], _libc.CLONE_NEWUSER)
        os.close(fds[0])
    elif request["new_userns"]:
        _libc.unshare(_libc.CLONE_NEWUSER)
        _send(connection, {"step": "map"})
        if not connection.recv(_PACKET_BYTES):
            os._exit(1)
    flags = 0
    for kind in request["kinds"]:
        flags |= _CLONE_FLAGS.get(kind, 0)
    _libc.unshare(flags)
    if request["netns_path"]:
        enter(request["netns_path"], _libc.CLONE_NEWNET)
    if request["hostname"] is not None:
        _libc.sethostname(request["hostname"])
    _write_sysctls(request["sysctls"])
    init = Init(bytes.fromhex(request["init"])) if request["init"] else None
    _send(connection, {"init": init.pid if init is not None else 0})
    return init


def _write_sysctls(sysctls: dict[str, str]) -> None:
    try:
        write_sysctls(sysctls)
    except PermissionError:
        # Before Linux 6.0 the sysctls of an IPC namespace are the daemon's uid's to write, since then they
        # belong to the root of the namespace's owner.
        os.setresuid(0, 0, 0)
        write_sysctls(sysctls)


class Init:
    """PID 1 of the PID namespace that this thread's children get: ready, but it executes its program when it is let go.

    Before that it ends with this process, however that ends. `pid` is as this process sees it. Raises OSError.
    """

    def __init__(self, elf: bytes) -> None:
        # Written while the disk quota, file limits and privileges are still those of the daemon.
        executable = _executable(elf)
        self._reports, report_fd = os.pipe()
        go_fd, self._go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _become_init(executable, report_fd, go_fd)
        for fd in (executable, report_fd, go_fd):
            os.close(fd)
        if (report := os.read(self._reports, _PACKET_BYTES)) != _PREPARED:
            self._close()
            raise _failure(report)

    def release(self) -> None:
        """Let it go, and return when it has executed its program. Raises OSError."""
        try:
            os.write(self._go, b"\n")
            # The pipe closes by itself when the exec succeeds.
            if report := os.read(self._reports, _PACKET_BYTES):
                raise _failure(report)
        finally:
            self._close()

    def _close(self) -> None:
        os.close(self._go)
        os.close(self._reports)


def _failure(report: bytes) -> OSError:
    number, _, text = report.decode().partition(" ")
    return OSError(int(number or 0), f"starting the init of the PID namespace: {text or 'it has died'}")


def _executable(elf: bytes) -> int:
    try:
        fd = os.memfd_create(_FILE_NAME, os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:
        # Kernels before 6.3 do not know the flag and make every memfd executable.
        fd = os.memfd_create(_FILE_NAME, os.MFD_CLOEXEC)
    os.write(fd, elf)
    # Not readable for the one who executes it: the kernel then keeps the process from being traced or
    # inspected by containers that happen to run under the same uid (prctl(2), PR_SET_DUMPABLE).
    os.fchmod(fd, 0o111)
    return fd


def _become_init(executable: int, report_fd: int, go_fd: int) -> NoReturn:
    try:
        # Inherited: the kernel discards what is reparented to it.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        unprivileged_id = _lowest_privilege()
        for fd in os.listdir("/proc/self/fd"):
            if int(fd) not in (executable, report_fd, go_fd):
                # One of them was the descriptor of the listing itself.
                with contextlib.suppress(OSError):
                    os.close(int(fd))
        _enter_empty_root()
        drop_privileges(unprivileged_id, unprivileged_id)
        os.write(report_fd, _PREPARED)
        if not os.read(go_fd, 1):
            os._exit(1)  # whoever has the other end is gone, and nobody knows of this process
        _libc.execveat(executable, [_INIT_NAME], [])
    except BaseException as error:
        number = error.errno if isinstance(error, OSError) and error.errno else 0
        # Nothing may leave this function: its caller is the parent's code.
        with contextlib.suppress(OSError):
            os.write(report_fd, f"{number} {error}".encode())
    os._exit(1)


def _lowest_privilege() -> int:
    """The id that the init runs under: 65535, or 0 inside a user namespace that does not map it."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", encoding="ascii") as file:
            ranges = [line.split() for line in file]
        if not any(int(first) <= _UNPRIVILEGED_ID < int(first) + int(count) for first, _, count in ranges):
            return 0
    return _UNPRIVILEGED_ID


def _enter_empty_root() -> None:
    """Make an empty read-only tmpfs the root, so that /proc/1/root shows a container nothing."""
    _libc.unshare(_libc.CLONE_NEWNS)
    _libc.mount(None, "/", None, MS_PRIVATE | MS_REC, None)
    _libc.mount("none", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0555,size=4k")
    os.chdir("/proc")
    pivot_to_working_directory()


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    # The daemon may be gone; the next read tells.
    with contextlib.suppress(OSError):
        connection.send(json.dumps(message).encode())
