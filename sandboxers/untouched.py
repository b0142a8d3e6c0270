"""The Task sockets of pods that this version leaves untouched: their calls are answered "unavailable", with the reason.

Silence would leave an engine waiting for answers that no version gives before it is replaced. Only Wait is parked, and
recorded for the daemon that understands the pod: any answer to it would be read as the end of a container.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from typing import NoReturn

from google.protobuf.message import Message

from common.descriptors.store import DescriptorStore
from common.errors import Unavailable, status_of
from common.journal import ConnectionJournal
from common.task.service import TASK_METHODS, TASK_SERVICE_NAMES
from common.ttrpc import CallContext, Server, Service, only_root
from sandboxers.registry import POD_GROUP, TASK_SOCKET


def serve_untouched(untouched: Mapping[str, str], store: DescriptorStore, journal: ConnectionJournal) -> None:
    """Answer for these pods, on the connections and listeners that were kept of them, until the daemon ends.

    :param untouched: why each is left alone, by its directory. Copies of all that is taken stay kept.
    """
    listeners = _kept_listeners(store) if untouched else {}
    for directory, why in untouched.items():
        path = f"{directory}/{TASK_SOCKET}"
        service = Service(_REFUSALS, _Refusal(f"the pod in {directory} is left as it is: {why}"))
        server = Server(
            dict.fromkeys(TASK_SERVICE_NAMES, service),
            status_of=status_of,
            authorize=only_root,
            journal=journal,
        )
        if (listener := listeners.pop(path, None)) is not None:
            server.listen(listener)
        journal.adopt_into(server, path)
    for listener in listeners.values():
        listener.close()


class _Refusal:
    def __init__(self, why: str) -> None:
        self._why = why

    async def refuse(self, request: Message, context: CallContext) -> NoReturn:
        raise Unavailable(self._why)

    async def park(self, request: Message, context: CallContext) -> Message:
        parked: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await parked


_REFUSALS = {
    name: method._replace(handler=_Refusal.park if name == "Wait" else _Refusal.refuse)
    for name, method in TASK_METHODS.items()
}


def _kept_listeners(store: DescriptorStore) -> dict[str, socket.socket]:
    """Return the listening sockets of the pods that nobody has taken up, by path."""
    listeners: dict[str, socket.socket] = {}
    for name in store.untaken():
        if not name.startswith(POD_GROUP):
            continue
        for fd in store.take(name):
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, fd)
                with contextlib.suppress(OSError):
                    sock = socket.socket(fileno=os.dup(fd))
                    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        listeners[sock.getsockname()] = sock
                    else:
                        sock.close()
    return listeners
