"""The service manager's side door: readiness, and a store for descriptors (sd_notify(3), sd_listen_fds(3)).

systemd and our own supervisor speak it alike. Messages are datagrams and are handled in order, also those of a
process that has died meanwhile.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import MutableMapping, Sequence

from common.descriptors.listen import taken_from_environment
from common.descriptors.names import EXIT_LOG_NAME, name_of, serial_of
from common.descriptors.store import DescriptorStore, NoStore
from common.failpoints import Failpoint, failpoint


def open_store(environment: MutableMapping[str, str] = os.environ) -> DescriptorStore:
    """Return the store of whoever has started us, with what it hands back; without one, a store that keeps nothing."""
    handed = taken_from_environment(environment)
    address = environment.get("NOTIFY_SOCKET", "")
    return NotifyStore(_connect(address), handed) if address else NoStore()


def notify(state: str) -> None:
    """Tell the service manager something, such as "READY=1"; without one, nobody."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), _connect(address) as sock:
            sock.send(state.encode())


async def barrier(timeout_s: float) -> bool:
    """Wait until the service manager has handled all that was told it before; tell whether it has."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    handled = asyncio.Event()
    loop.add_reader(reader, handled.set)
    try:
        try:
            with _connect(address) as sock:
                _send(sock, b"BARRIER=1", [writer])
        except OSError:
            return False
        finally:
            os.close(writer)
        async with asyncio.timeout(timeout_s):
            await handled.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(reader)
        os.close(reader)


class NotifyStore:
    """Descriptors kept by the service manager (`DescriptorStore`)."""

    __slots__ = ("_handed", "_serial", "_sock", "_unsent")
    keeps = True

    def __init__(self, sock: socket.socket, handed: dict[str, list[int]]) -> None:
        self._sock = sock
        self._handed = handed
        self._serial = 0
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        for name in handed:
            self.reserve(name)

    def new_name(self, kind: str) -> str:
        """Return a name that no group has, nor has had since the boot."""
        self._serial += 1
        return name_of(kind, self._serial)

    def reserve(self, name: str) -> None:
        """Never give out the serial number of this name again."""
        with contextlib.suppress(ValueError):
            if name != EXIT_LOG_NAME:
                self._serial = max(self._serial, serial_of(name))

    def put(self, name: str, fds: Sequence[int]) -> None:
        """Let copies be kept; the manager shall not watch them, or it would drop what hangs up."""
        if fds:
            self._submit(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}".encode(), fds)
            failpoint(Failpoint.STORE_PUT)

    def remove(self, name: str) -> None:
        """Let all that is kept under the name be closed."""
        self._submit(f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), ())
        failpoint(Failpoint.STORE_REMOVED)

    def take(self, name: str) -> list[int]:
        """Return what was handed back under the name, once."""
        return self._handed.pop(name, [])

    def untaken(self) -> list[str]:
        """Return the names of what was handed back and not taken."""
        return list(self._handed)

    def close(self) -> None:
        """Stop talking to the manager."""
        self._sock.close()

    def _submit(self, payload: bytes, fds: Sequence[int]) -> None:
        if not self._unsent:
            try:
                _send(self._sock, payload, fds)
                return
            except BlockingIOError:
                pass
            except OSError:
                return  # the manager is gone, and with it the store
            asyncio.get_running_loop().add_writer(self._sock, self._flush)
        self._unsent.append((payload, [os.dup(fd) for fd in fds]))

    def _flush(self) -> None:
        while self._unsent:
            payload, fds = self._unsent[0]
            try:
                _send(self._sock, payload, fds)
            except BlockingIOError:
                return
            except OSError:
                pass
            self._unsent.popleft()
            for fd in fds:
                os.close(fd)
        asyncio.get_running_loop().remove_writer(self._sock)


def _connect(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except BaseException:
        sock.close()
        raise
    return sock


def _send(sock: socket.socket, payload: bytes, fds: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([payload], rights, socket.MSG_NOSIGNAL)
