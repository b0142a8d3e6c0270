"""A service manager that is to the daemon what systemd is: it keeps its descriptors, and does nothing else for it.

    python -I service_manager.py DIRECTORY COMMAND...

Unlike our supervisor it is no subreaper and has no log of exits, so that only a pidfd tells how something has ended,
and its queue is short. As systemd does (sd_notify(3)), it drops what it keeps already, under whatever name. Its socket
is in the directory.
"""

import fcntl
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from common.descriptors.listen import FIRST_FD
from tests.descriptor_store import same_description

RESTART_S = 0.1


class Manager:
    """Runs one command, again and again, until told to stop."""

    def __init__(self, directory: str, command: list[str]) -> None:
        self._address = f"{directory}/notify.{os.getpid()}"
        self._command = command
        self._kept: list[tuple[str, int]] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notify.bind(self._address)
        self._stopping = False
        self._pid = 0

    def run(self) -> int:
        """Return how the last one has ended."""
        signal.signal(signal.SIGTERM, self._stop)
        # As `systemctl restart` does.
        signal.signal(signal.SIGHUP, lambda *_: self._end_daemon())
        status = 0
        while not self._stopping:
            self._spawn()
            status = self._serve()
            time.sleep(RESTART_S)
        os.unlink(self._address)
        return status

    def _stop(self, *_: object) -> None:
        self._stopping = True
        self._end_daemon()

    def _end_daemon(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)

    def _spawn(self) -> None:
        self._pid = os.fork()
        if self._pid:
            return
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            beyond = FIRST_FD + len(self._kept)
            moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, beyond) for _, fd in self._kept]
            for number, fd in enumerate(moved, FIRST_FD):
                os.dup2(fd, number)
            variables = {
                "NOTIFY_SOCKET": self._address,
                "LISTEN_PID": str(os.getpid()),
                "LISTEN_FDS": str(len(moved)),
                "LISTEN_FDNAMES": ":".join(name for name, _ in self._kept),
            }
            os.execve(self._command[0], self._command, {**os.environ, **variables})
        finally:
            os._exit(127)

    def _serve(self) -> int:
        """Handle what the daemon says until it has ended, and all of that; return its exit code."""
        pidfd = os.pidfd_open(self._pid)
        poll = select.poll()
        poll.register(self._notify, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while pidfd not in [fd for fd, _ in poll.poll()]:
            self._handle_messages()
        self._handle_messages()
        os.close(pidfd)
        pid, self._pid = self._pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _handle_messages(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._notify, 4096, 253)
            except BlockingIOError:
                return
            for fd in fds:
                os.set_inheritable(fd, False)
            self._handle(dict(line.split("=", 1) for line in data.decode().split("\n")), fds)

    def _handle(self, fields: dict[str, str], fds: list[int]) -> None:
        name = fields.get("FDNAME", "stored")
        if "FDSTOREREMOVE" in fields:
            for other, fd in self._kept:
                if other == name:
                    os.close(fd)
            self._kept = [kept for kept in self._kept if kept[0] != name]
        for fd in fds:
            # systemd would drop what hangs up unless it was told not to watch it.
            if (
                "FDSTORE" in fields
                and fields.get("FDPOLL") == "0"
                and not any(same_description(fd, other) for _, other in self._kept)
            ):
                self._kept.append((name, fd))
            else:
                os.close(fd)


if __name__ == "__main__":
    sys.exit(Manager(sys.argv[1], sys.argv[2:]).run())
