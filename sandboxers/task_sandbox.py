"""A pod with a Task service on a socket of its own, whatever runs its containers."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from typing import Any

from common.descriptors.store import DescriptorStore
from common.journal import ConnectionJournal
from common.task.container import AnyContainer
from common.transport.streams import listen_unix
from common.ttrpc import Server
from sandboxers.pod_config import PodConfig
from sandboxers.registry import TASK_SOCKET
from sandboxers.sandbox import Endpoint, SandboxExit


class TaskSandbox(ABC):
    """What the `Sandbox`es of all types share: a server and its listener, which outlives the daemon."""

    __slots__ = ("_directory", "_group", "_listener", "_on_exit", "_pod", "_server", "_store")

    def __init__(self, pod: PodConfig, directory: str, group: str, store: DescriptorStore) -> None:
        """:param group: under which name `store` keeps what the pod needs to outlive this daemon."""
        self._pod = pod
        self._directory = directory
        self._group = group
        self._store = store
        self._server: Server | None = None
        self._listener = -1
        self._on_exit: SandboxExit | None = None

    @abstractmethod
    def _make_server(self) -> Server:
        """Return a server of the pod's containers."""

    @property
    def _socket_path(self) -> str:
        return f"{self._directory}/{TASK_SOCKET}"

    def _endpoint_of(self, pid: int) -> Endpoint:
        return Endpoint(f"ttrpc+unix://{self._socket_path}", pid)

    def _serve(self, listener: socket.socket | None = None) -> None:
        """Serve on a socket that an earlier daemon has left, or on a new one."""
        listener = listener or listen_unix(self._socket_path)
        self._server = self._make_server()
        self._listener = listener.fileno()
        self._server.listen(listener)

    def _adopt_connections(self, journal: ConnectionJournal) -> None:
        """Go on with the connections that an earlier daemon has left."""
        assert self._server is not None
        journal.adopt_into(self._server, self._socket_path)

    def _keep_listener(self) -> None:
        """Let the socket alone be kept for a later daemon: the pod was stopped, and answers all the same."""
        if self._server is not None:
            self._store.put(self._group, [self._listener])

    @staticmethod
    def _details_of(container: AnyContainer[Any], state: str) -> dict[str, Any]:
        """Tell of a container what an operator may want to see."""
        ended = container.init.exit
        return {"pid": container.init.pid, "state": state, "exit_code": ended.code if ended else None}

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
