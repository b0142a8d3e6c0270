"""An engine of which only the lists of what it knows exist."""

from __future__ import annotations

from typing import Any

import grpc.aio

from proto.gen.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_pb2_grpc
from proto.gen.containerd.services.sandbox.v1 import store_pb2, store_pb2_grpc
from proto.gen.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class FakeEngine(
    namespaces_pb2_grpc.NamespacesServicer, store_pb2_grpc.StoreServicer, tasks_pb2_grpc.TasksServicer
):
    """Serves its sets `sandboxes` and `tasks` in `namespace`, beside which there is an empty one; `questions` counts
    what it was asked there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sandboxes: set[str] = set()
        self.tasks: set[str] = set()
        self.namespace = "k8s.io"
        self.questions: list[str] = []
        self._server: grpc.aio.Server | None = None

    async def start(self, *, tasks: bool = True) -> FakeEngine:
        self._server = grpc.aio.server()
        namespaces_pb2_grpc.add_NamespacesServicer_to_server(self, self._server)
        store_pb2_grpc.add_StoreServicer_to_server(self, self._server)
        if tasks:
            tasks_pb2_grpc.add_TasksServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.address}")
        await self._server.start()
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def List(self, request: Any, context: Context) -> Any:
        # All services have a method of this name.
        if isinstance(request, namespaces_pb2.ListNamespacesRequest):
            names = ("default", self.namespace)
            return namespaces_pb2.ListNamespacesResponse(
                namespaces=[namespaces_pb2.Namespace(name=name) for name in names]
            )
        namespace = dict(context.invocation_metadata() or ()).get("containerd-namespace")
        known = namespace == self.namespace
        if isinstance(request, store_pb2.StoreListRequest):
            if known:
                self.questions.append("sandboxes")
            sandboxes = store_pb2.StoreListResponse()
            for sandbox_id in self.sandboxes if known else ():
                sandboxes.list.add(sandbox_id=sandbox_id)
            return sandboxes
        if known:
            self.questions.append("tasks")
        tasks = tasks_pb2.ListTasksResponse()
        for task_id in self.tasks if known else ():
            tasks.tasks.add(id=task_id)
        return tasks
