"""The agent: its services assembled, announced and served, until the host ends the machine."""

from __future__ import annotations

import asyncio
import gc
import os
from functools import partial
from typing import NamedTuple

from common.cgroup import Hierarchies, OomWatcher
from common.errors import status_of
from common.linux.prctl import set_child_subreaper
from common.linux.procs import CAP_SYS_RESOURCE, has_capability
from common.log import get_logger
from common.process.exits import ExitWatcher
from common.records import write_no_record
from common.task.backend import TaskParts
from common.task.oci_backend import OciBackend
from common.task.service import TASK_METHODS, TASK_SERVICE_NAMES, TaskService
from common.transport import transport_of
from common.ttrpc import Server, Service, StatusError
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from vmm.agent import boot
from vmm.agent.host import Host
from vmm.agent.kernel_files import read
from vmm.agent.preparer import Directories, GuestPreparer
from vmm.agent.runtime import GuestRuntime, MountNamespaces
from vmm.agent.service import SANDBOX_METHODS, SandboxService
from vmm.agent.stdio import StreamStdio
from vmm.agent.streams import Streams
from vmm.protocol import (
    HOST_PORT,
    RUN_DIRECTORY,
    SANDBOX_SERVICE,
    STREAM_END_TOPIC,
    STREAM_PORT,
    TASK_PORT,
)

_RUNTIME_TIMEOUT_S = 60.0
_SANDBOX_ID = "guest"

log = get_logger()


class Settings(NamedTuple):
    """Where an agent works; in a guest these are what they are."""

    transport: str = "vsock://2"
    host_port: int = HOST_PORT
    directory: str = RUN_DIRECTORY
    runtime: str = "/usr/bin/crun"
    cgroup: str = boot.POD_CGROUP


class Agent:
    """The services of one guest, assembled."""

    __slots__ = ("_end", "_host", "_server", "_streams")

    def __init__(self, settings: Settings, began_ns: int) -> None:
        """Listen; all that a first call needs is there when this returns."""
        directory = settings.directory
        transport = transport_of(settings.transport)
        self._end = asyncio.Event()
        self._host = Host(transport, settings.host_port, began_ns)
        self._streams = Streams(self._on_stream_end)
        exits = ExitWatcher()
        hierarchies = Hierarchies.read()
        namespaces = MountNamespaces()
        runtime = GuestRuntime(settings.runtime, f"{directory}/crun", exits, _RUNTIME_TIMEOUT_S, namespaces)
        parts = TaskParts(
            OciBackend(runtime),
            exits,
            self._host,
            OomWatcher(),
            hierarchies,
            stdio=partial(StreamStdio, self._streams),
            # When the agent ends, so does its machine.
            write_record=write_no_record,
        )
        sandbox = SandboxService(directory, self._streams, exits, self._end.set)
        preparer = GuestPreparer(
            sandbox.view,
            sandbox.shm,
            Directories(f"{directory}/tasks", f"{directory}/shares", settings.cgroup),
            hierarchies,
            has_capability(CAP_SYS_RESOURCE),
            namespaces,
        )
        sandbox.tasks = TaskService(_SANDBOX_ID, parts, preparer, directory)
        self._server = Server(
            {
                **dict.fromkeys(TASK_SERVICE_NAMES, Service(TASK_METHODS, sandbox.tasks)),
                SANDBOX_SERVICE: Service(SANDBOX_METHODS, sandbox),
            },
            status_of=status_of,
            # The host's relay says again what it cannot know to have arrived.
            drops_repeats=True,
        )
        self._server.listen(transport.listen(TASK_PORT))
        self._streams.listen(transport.listen(STREAM_PORT))

    async def run(self) -> None:
        """Announce, and serve until the host says Shutdown."""
        try:
            await self._host.announce()
        except StatusError as error:
            log.error("agent.refused", error=error)
        await self._end.wait()
        # The answer to Shutdown is on its way; its reader may close first.
        await asyncio.sleep(0.05)

    def _on_stream_end(self, stream_id: str, length: int) -> None:
        self._host.publish(STREAM_END_TOPIC, api.StreamEnd(id=stream_id, length=length))


async def _serve(settings: Settings, began_ns: int) -> None:
    agent = Agent(settings, began_ns)
    # What was loaded stays: the collector need not look at it again and again.
    gc.freeze()
    gc.enable()
    await agent.run()


def main(arguments: list[str], began_ns: int) -> int:
    """Run the agent; returns only where it is not PID 1 of a machine.

    :param arguments: names and values of settings, for an agent that is a plain process.
    :param began_ns: when the program began, since the boot.
    """
    if os.getpid() == 1 and not arguments:
        boot.prepare_machine()
        port = boot.host_port(read("/proc/cmdline"))
        asyncio.run(_serve(Settings(host_port=port), began_ns))
        os.sync()
        boot.reset()
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    settings = Settings(
        transport=options["--transport"],
        directory=options["--directory"],
        runtime=options["--runtime"],
        cgroup=options["--cgroup"],
    )
    boot.prepare_directories(settings.directory)
    set_child_subreaper()
    asyncio.run(_serve(settings, began_ns))
    return 0
