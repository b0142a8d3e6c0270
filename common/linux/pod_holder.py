"""Namespaces that need a process to make them: those of user-namespace pods and shared PID namespaces.

A helper program joins or creates the user namespace, unshares the rest and says so; the daemon opens
/proc/<helper>/ns/*, and the helper ends. For a shared PID namespace it leaves an init behind, which becomes
a child of the daemon (a child subreaper). The helper's side is `_holder_main`; both talk JSON in packets of
a socket pair, the helper's stdin. Until the daemon has confirmed, an init lives as long as the helper, not longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from common import errors
from common.linux.namespaces import Kind, check_settings, close_all, open_all
from common.linux.pod_init import pod_init_elf
from common.process.exits import ExitWatcher
from common.process.spawn import Child, own_program, spawn

_PACKET_BYTES = 64 * 1024
_TIMEOUT_S = 10.0
_HELPER_EXIT_LIMIT_S = 1.0


IdMapping = tuple[int, int, int]
"""First id inside, first id outside, how many (user_namespaces(7))."""


@dataclass(frozen=True, slots=True)
class HolderRequest:
    """What to make: `kinds` out of IPC, UTS, PID and USER.

    USER is held whether it was joined (`userns_fd`) or made from `uid_mappings`/`gid_mappings`. Without
    either the namespaces belong to the daemon's user namespace. `netns_path` is where
    sysctls of net.* go, and where the init lives.
    """

    kinds: Collection[Kind]
    hostname: str | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    netns_path: str | None = None
    userns_fd: int | None = None
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class HolderResult:
    """A descriptor of each namespace, and the init of a shared PID namespace as the host sees it.

    The caller owns the descriptors and the pidfd. `pid` is 0 and `pidfd` -1 when no PID namespace was asked for.
    """

    namespaces: dict[Kind, int]
    pid: int = 0
    pidfd: int = -1


async def hold_namespaces(
    request: HolderRequest, watcher: ExitWatcher, on_held: Callable[[HolderResult], None]
) -> HolderResult:
    """Make the namespaces of `request` and open them; all or nothing, in about 30 ms.

    `on_held` may write down what there is: until the confirmation that follows it, the init dies with this process.
    The init, when there is one, has become a child of the daemon: hand `pid` and `pidfd` to `watcher.watch`
    before the next await. Raises InvalidArgument for what the request got wrong, OSError for what the kernel
    refuses, DeadlineExceeded after 10 s.
    """
    _check(request)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watcher.adoption())
        stack.enter_context(ours)
        with theirs:
            fds = [] if request.userns_fd is None else [request.userns_fd]
            socket.send_fds(ours, [_packed(_instructions(request))], fds)
            helper = spawn(own_program("common.linux._holder_main"), watcher=watcher, stdin=theirs.fileno())
        conversation = _Conversation(ours, helper, request)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                result = await conversation.hold(on_held)
                if (await helper.wait()).code:
                    await conversation.hear_failure()
        except BaseException as error:
            conversation.undo()
            # The helper sees the end of the conversation, or is killed; an init that was not let go ends with it.
            ours.close()
            await _ended(helper)
            if isinstance(error, TimeoutError):
                raise errors.DeadlineExceeded(f"making namespaces took over {_TIMEOUT_S:g} s") from None
            raise
        return result


class _Conversation:
    __slots__ = ("_helper", "_namespaces", "_pidfd", "_request", "_socket")

    def __init__(self, sock: socket.socket, helper: Child, request: HolderRequest) -> None:
        self._socket = sock
        self._helper = helper
        self._request = request
        self._namespaces: dict[Kind, int] = {}
        self._pidfd = -1

    async def hold(self, on_held: Callable[[HolderResult], None]) -> HolderResult:
        message = await self._receive()
        if message.get("step") == "map":
            self._write_mappings()
            self._send({"step": "mapped"})
            message = await self._receive()
        pid = int(message["init"])
        self._namespaces = open_all({kind: self._source(kind) for kind in self._request.kinds})
        if pid:
            self._pidfd = os.pidfd_open(pid)
        result = HolderResult(self._namespaces, pid, self._pidfd)
        on_held(result)
        self._send({"step": "done"})
        return result

    async def hear_failure(self) -> NoReturn:
        """Raise what the helper has said last, which has ended."""
        message = await self._receive()
        raise errors.Internal(f"the namespace helper failed after it was done: {message}")

    def undo(self) -> None:
        """Take back whatever `hold` has reached."""
        close_all(self._namespaces)
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)

    def _source(self, kind: Kind) -> str:
        name = "pid_for_children" if kind is Kind.PID else kind.value
        return f"/proc/{self._helper.pid}/ns/{name}"

    def _write_mappings(self) -> None:
        for name, mappings in (
            ("uid_map", self._request.uid_mappings),
            ("gid_map", self._request.gid_mappings),
        ):
            text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in mappings)
            path = f"/proc/{self._helper.pid}/{name}"
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            except OSError as error:
                raise errors.InvalidArgument(
                    f"the kernel refuses the {name} {text.strip()!r}: {error.strerror}"
                ) from error
            finally:
                os.close(fd)

    def _send(self, message: Mapping[str, Any]) -> None:
        self._socket.send(_packed(message))

    async def _receive(self) -> dict[str, Any]:
        packet = await asyncio.get_running_loop().sock_recv(self._socket, _PACKET_BYTES)
        if not packet:
            status = await self._helper.wait()
            raise errors.Internal(f"the namespace helper ended unexpectedly with code {status.code}")
        message: dict[str, Any] = json.loads(packet)
        if "invalid" in message:
            raise errors.InvalidArgument(message["invalid"])
        if "internal" in message:
            raise errors.Internal(f"the namespace helper failed: {message['internal']}")
        if "errno" in message:
            raise OSError(message["errno"], message["text"], message["path"])
        return message


def _check(request: HolderRequest) -> None:
    kinds = set(request.kinds)
    if unknown := kinds - {Kind.IPC, Kind.UTS, Kind.PID, Kind.USER}:
        raise errors.InvalidArgument(f"cannot create {', '.join(sorted(unknown))} namespaces")
    maps = bool(request.uid_mappings), bool(request.gid_mappings)
    if maps[0] != maps[1]:
        raise errors.InvalidArgument("a user namespace needs mappings of both users and groups")
    if maps[0] and request.userns_fd is not None:
        raise errors.InvalidArgument("either join a user namespace or make one with mappings, not both")
    if Kind.USER in kinds and not maps[0] and request.userns_fd is None:
        raise errors.InvalidArgument("a user namespace needs mappings or one to join")
    check_settings(kinds, request.hostname, request.sysctls, has_netns=bool(request.netns_path))


def _instructions(request: HolderRequest) -> dict[str, Any]:
    return {
        "kinds": [kind.value for kind in request.kinds],
        "hostname": request.hostname,
        "sysctls": dict(request.sysctls),
        "netns_path": request.netns_path,
        "new_userns": bool(request.uid_mappings),
        "init": pod_init_elf().hex() if Kind.PID in request.kinds else None,
    }


def _packed(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode()


async def _ended(helper: Child) -> None:
    try:
        async with asyncio.timeout(_HELPER_EXIT_LIMIT_S):
            await helper.wait()
    except TimeoutError:
        with contextlib.suppress(errors.NotFound):
            helper.signal(signal.SIGKILL)
