"""The service manager's side door: readiness, and a store for descriptors (sd_notify(3), sd_listen_fds(3)).

systemd and our own supervisor speak it alike, which has handed us its socket ("fd:7"), where systemd has an address.
Messages are datagrams and are handled in order, also those of a process that has died meanwhile.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence

from common.descriptors.listen import taken_from_environment
from common.descriptors.names import EXIT_LOG_NAME, name_of, serial_of
from common.descriptors.serials import Serials
from common.descriptors.store import DescriptorStore, NoStore
from common.failpoints import Failpoint, failpoint
from common.log import get_logger

_ADDRESS = "NOTIFY_SOCKET"
_HANDED = "fd:"
_TELL_LIMIT_S = 5.0
_PAUSE_S = 0.05
# Worth a wait, though the loop stands still: whoever is killed with messages in its own queue loses what they keep.
_PATIENCE_S = 0.25
# The manager's queue is full; there is no memory; as many descriptors as we may open are on their way (unix(7)).
_TRANSIENT = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})

log = get_logger()


def open_store(serials_path: str = "", environment: MutableMapping[str, str] = os.environ) -> DescriptorStore:
    """Return the store of whoever has started us, with what it hands back; without one, a store that keeps nothing.

    `serials_path` is where the names of all daemons with the same state come from (`Serials`).

    That there is one is known by NOTIFY_SOCKET alone: only systemd 254 and newer tell more (FDSTORE), and one that
    keeps nothing drops what it is given.
    """
    handed = taken_from_environment(environment)
    address = environment.get(_ADDRESS, "")
    return NotifyStore(_Sender(address), handed, serials_path) if address else NoStore()


def notify(state: str) -> None:
    """Tell the service manager something, such as "READY=1"; without one, nobody.

    Blocks while its queue is full, for seconds at most: such messages are few, and a service that has not told that
    it is ready is killed.
    """
    address = os.environ.get(_ADDRESS, "")
    if not address:
        return
    try:
        with _connect(address) as sock:
            sock.settimeout(_TELL_LIMIT_S)
            sock.send(state.encode())
    except OSError as error:
        log.error("manager.not_told", state=state, error=error)


async def barrier(timeout_s: float) -> bool:
    """Wait until the service manager has handled all that was told it before; tell whether it has."""
    address = os.environ.get(_ADDRESS, "")
    if not address:
        return True
    # Behind what the store could not send yet, if there is a store.
    sender = _senders.get(address)
    if sender is not None:
        return await _barrier_behind(sender, timeout_s)
    with contextlib.closing(_Sender(address)) as sender:
        return await _barrier_behind(sender, timeout_s)


async def _barrier_behind(sender: _Sender, timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    handled = asyncio.Event()
    loop.add_reader(reader, handled.set)
    try:
        try:
            sent = sender.submit(b"BARRIER=1", [writer])
        finally:
            os.close(writer)
        if sent:
            async with asyncio.timeout(timeout_s):
                await handled.wait()
        return sent
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(reader)
        os.close(reader)


class NotifyStore:
    """Descriptors kept by the service manager (`DescriptorStore`)."""

    __slots__ = ("_handed", "_sender", "_serials")
    keeps = True

    def __init__(self, sender: _Sender, handed: dict[str, list[int]], serials_path: str) -> None:
        self._sender = sender
        self._handed = handed
        self._serials = Serials(serials_path, max([0, *map(_serial_or_0, handed)]))

    def new_name(self, kind: str) -> str:
        """Return a name that no group has, nor has had since the boot."""
        return name_of(kind, self._serials.next())

    def put(self, name: str, fds: Sequence[int]) -> None:
        """Let copies be kept; the manager shall not watch them, or it would drop what hangs up."""
        if fds:
            self._sender.submit(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}".encode(), fds)
            failpoint(Failpoint.STORE_PUT)

    def remove(self, name: str) -> None:
        """Let all that is kept under the name be closed."""
        self._sender.submit(f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), ())
        failpoint(Failpoint.STORE_REMOVED)

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call back when the manager has in its queue, at least, what was put until now; or never will."""
        self._sender.when_sent(callback)

    def take(self, name: str) -> list[int]:
        """Return what was handed back under the name, once."""
        return self._handed.pop(name, [])

    def untaken(self) -> list[str]:
        """Return the names of what was handed back and not taken."""
        return list(self._handed)

    def close(self) -> None:
        """Stop talking to the manager; what it keeps stays kept."""
        self._sender.close()


class _Sender:
    """Sends messages in order: what does not go through within a moment is sent by the event loop.

    Queues are short (net.unix.max_dgram_qlen is 10 where no systemd has raised it), and a manager that is busy is
    waited for once, until it takes messages again.
    """

    __slots__ = ("_address", "_sock", "_unsent")

    def __init__(self, address: str) -> None:
        self._address = address
        self._unsent: deque[tuple[bytes, list[int]] | Callable[[], None]] = deque()
        try:
            self._sock = _connect(address)
        except OSError as error:
            log.error("manager.not_reached", address=address, error=error)
            self._sock = _unconnected()
        _senders.setdefault(address, self)

    def submit(self, payload: bytes, fds: Sequence[int]) -> bool:
        """Send copies of these descriptors, now or later; tell whether there was hope."""
        try:
            if not self._unsent and self._send(payload, fds, _PATIENCE_S):
                return True
            self._unsent.append((payload, [os.dup(fd) for fd in fds]))
        except OSError as error:
            log.error("manager.not_told", message=payload.decode(), error=error)
            return False
        self._flush()
        return True

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call back in the order of the messages."""
        if self._unsent:
            self._unsent.append(callback)
        else:
            callback()

    def close(self) -> None:
        """Drop what is not sent."""
        if _senders.get(self._address) is self:
            del _senders[self._address]
        for waiting in self._unsent:
            if isinstance(waiting, tuple):
                _close_all(waiting[1])
        self._unsent.clear()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_writer(self._sock)
        self._sock.close()

    def _send(self, payload: bytes, fds: Sequence[int], patience_s: float = 0.0) -> bool:
        """Tell whether it went through; False if it may later. Raises OSError if it never will."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        give_up_at = 0.0
        while True:
            try:
                self._sock.sendmsg([payload], rights, socket.MSG_NOSIGNAL)
                return True
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    raise
                is_full = error.errno == errno.EAGAIN
            give_up_at = give_up_at or time.monotonic() + patience_s
            if not (is_full and _becomes_writable(self._sock, give_up_at - time.monotonic())):
                self._flush_later(when_writable=is_full)
                return False

    def _flush(self) -> None:
        while self._unsent:
            first = self._unsent[0]
            if isinstance(first, tuple):
                payload, fds = first
                try:
                    if not self._send(payload, fds):
                        return
                except OSError as error:
                    log.error("manager.not_told", message=payload.decode(), error=error)
                _close_all(fds)
            self._unsent.popleft()
            if not isinstance(first, tuple):
                first()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_writer(self._sock)

    def _flush_later(self, *, when_writable: bool) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the next message tries again
        if when_writable:
            loop.add_writer(self._sock, self._flush)
        else:
            # Such a socket is writable all the time.
            loop.remove_writer(self._sock)
            loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._flush()


_senders: dict[str, _Sender] = {}


def _serial_or_0(name: str) -> int:
    try:
        return 0 if name == EXIT_LOG_NAME else serial_of(name)
    except ValueError:
        return 0


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _becomes_writable(sock: socket.socket, within_s: float) -> bool:
    if within_s <= 0:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(within_s * 1000))


def _unconnected() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)


def _connect(address: str) -> socket.socket:
    if address.startswith(_HANDED):
        number = int(address.removeprefix(_HANDED))
        os.set_inheritable(number, False)
        sock = socket.socket(fileno=os.dup(number))
        sock.setblocking(False)
        return sock
    sock = _unconnected()
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except BaseException:
        sock.close()
        raise
    return sock
