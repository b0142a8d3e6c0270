"""What the engine says that it knows: its sandboxes and tasks, over containerd's own gRPC services.

Both are listed in every namespace that the engine has: the CRI's is not the only one that pods may be made in. A task
is listed only if it has answered the engine's question for its state: absence from one list proves nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import grpc
import grpc.aio

from common.errors import Unavailable
from proto.gen.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_pb2_grpc
from proto.gen.containerd.services.sandbox.v1 import store_pb2, store_pb2_grpc
from proto.gen.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from sandboxers.embedded import EMBEDDED_DIR, embedded_containers, embedded_pods

_MAX_LIST_BYTES: Final = 64 << 20


class EngineList(NamedTuple):
    """The ids that an engine knows."""

    sandboxes: frozenset[str]
    tasks: frozenset[str]


async def list_engines(
    address: str, timeout_s: float, *, tasks: bool = True, embedded_dir: str = EMBEDDED_DIR
) -> EngineList:
    """Return what all engines of this node know that may use a daemon: the one at `address`, and `sandboxctl run`.

    :raise Unavailable: the former cannot be asked.
    """
    known = await list_engine(address, timeout_s, tasks=tasks)
    embedded = list_embedded(embedded_dir)
    return EngineList(known.sandboxes | embedded.sandboxes, known.tasks | embedded.tasks)


def list_embedded(embedded_dir: str = EMBEDDED_DIR) -> EngineList:
    """Return what `sandboxctl run` knows: all that there may be where a daemon serves it alone."""
    return EngineList(frozenset(embedded_pods(embedded_dir)), frozenset(embedded_containers(embedded_dir)))


async def list_engine(address: str, timeout_s: float, *, tasks: bool = True) -> EngineList:
    """Ask the engine whose gRPC socket is at `address`; without `tasks` for its sandboxes alone.

    :raise Unavailable: it cannot be reached, or is none that can tell.
    """
    try:
        async with _channel(address) as channel:
            sandboxes: set[str] = set()
            running: set[str] = set()
            for metadata in await _namespaces(channel, timeout_s):
                store = store_pb2_grpc.StoreStub(channel)
                known = await store.List(store_pb2.StoreListRequest(), timeout=timeout_s, metadata=metadata)
                sandboxes.update(sandbox.sandbox_id for sandbox in known.list)
                if tasks:
                    service = tasks_pb2_grpc.TasksStub(channel)
                    listed = await service.List(
                        tasks_pb2.ListTasksRequest(), timeout=timeout_s, metadata=metadata
                    )
                    # The id of a process is its task's; `container_id` is left empty (containerd's tasks service).
                    running.update(task.id or task.container_id for task in listed.tasks)
            return EngineList(frozenset(sandboxes), frozenset(running))
    except grpc.aio.AioRpcError as error:
        raise _unavailable(address, error) from error


async def find_log_path(address: str, container_id: str, timeout_s: float) -> str:
    """Return where a CRI engine writes what a container writes, or "" if it does not know the container.

    :raise Unavailable: it cannot be asked.
    """
    from proto.gen.runtime.v1 import service_pb2 as cri  # late: the daemon has no use for these large ones
    from proto.gen.runtime.v1 import service_pb2_grpc as cri_grpc

    try:
        async with _channel(address) as channel:
            service = cri_grpc.RuntimeServiceStub(channel)
            request = cri.ContainerStatusRequest(container_id=container_id)
            return str((await service.ContainerStatus(request, timeout=timeout_s)).status.log_path)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return ""
        raise _unavailable(address, error) from error


def _channel(address: str) -> grpc.aio.Channel:
    """Return a channel to an engine; raise Unavailable if none is configured."""
    if not address:
        raise Unavailable("no engine is configured that can be asked: see 'engine.kind' and 'engine.address'")
    options = [
        ("grpc.max_receive_message_length", _MAX_LIST_BYTES),
        # Shared ones remember for a while that an engine was away.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(f"unix:{address}", options=options)


def _unavailable(address: str, error: grpc.aio.AioRpcError) -> Unavailable:
    text = f"the engine at {address} does not tell what it knows: {error.code().name}: {error.details()}"
    return Unavailable(text)


async def _namespaces(channel: grpc.aio.Channel, timeout_s: float) -> list[tuple[tuple[str, str], ...]]:
    """Return the metadata that selects each namespace."""
    service = namespaces_pb2_grpc.NamespacesStub(channel)
    listed = await service.List(namespaces_pb2.ListNamespacesRequest(), timeout=timeout_s)
    return [(("containerd-namespace", namespace.name),) for namespace in listed.namespaces]
