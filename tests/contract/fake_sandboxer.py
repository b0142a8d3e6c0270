"""A sandboxer whose pods are files in their directory: the Controller and the registry are tested with it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message

from common.errors import InvalidArgument
from proto.gen.cgroups.v2 import metrics_pb2
from sandboxers.pod_config import PodConfig
from sandboxers.sandbox import Endpoint, SandboxExit, Stray

REFUSED_HOSTNAME = "refused"
PID = 4711


class FakeSandbox:
    """A pod that is made of a listening socket and a marker file."""

    def __init__(self, pod: PodConfig, directory: str, group: str, sandboxer: FakeSandboxer) -> None:
        self.pod = pod
        self.directory = directory
        self.group = group
        self.abandoned_containers: list[str] = []
        self.listed: dict[str, set[str]] = {}
        self.on_exit: SandboxExit | None = None
        self._sandboxer = sandboxer
        self._listener: socket.socket | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"ttrpc+unix://{self.directory}/task.sock", PID)

    async def start(self, on_exit: SandboxExit) -> Endpoint:
        with self._sandboxer.call("start", self):
            self.on_exit = on_exit
            self._listen()
            try:
                await self._sandboxer.pass_gate("start")
            except BaseException:
                self._release()
                raise
            return self.endpoint

    async def stop(self, timeout_s: float) -> None:
        with self._sandboxer.call("stop", self):
            await self._sandboxer.pass_gate("stop")
            if os.path.exists(self._marker):
                os.unlink(self._marker)

    async def destroy(self) -> None:
        with self._sandboxer.call("destroy", self):
            await self._sandboxer.pass_gate("destroy")
            self._release()

    async def recover(self, on_exit: SandboxExit, *, running: bool) -> Endpoint:
        with self._sandboxer.call("recover", self):
            self.on_exit = on_exit
            self._sandboxer.recovered[self.pod.sandbox_id] = running
            await self._sandboxer.pass_gate("recover")
            self._listen()
            return self.endpoint

    async def forget_unlisted_execs(self, listed: Mapping[str, Collection[str]]) -> None:
        self.listed = {container_id: set(exec_ids) for container_id, exec_ids in listed.items()}

    def abandoned(self) -> list[str]:
        return list(self.abandoned_containers)

    async def collect(self, container_id: str) -> None:
        with self._sandboxer.call("collect", self):
            await self._sandboxer.pass_gate("collect")
            self.abandoned_containers.remove(container_id)

    def details(self) -> dict[str, Any]:
        return {"marker": self._marker}

    def metrics(self) -> Message | None:
        if not self.pod.cgroup_parent:
            return None
        return metrics_pb2.Metrics(memory=metrics_pb2.MemoryStat(usage=42))

    def end(self, exit_code: int, exited_at_ns: int) -> None:
        """End by itself, as a virtual machine does."""
        assert self.on_exit is not None
        self.on_exit(exit_code, exited_at_ns)

    @property
    def _marker(self) -> str:
        return f"{self.directory}/pod"

    def _listen(self) -> None:
        path = f"{self.directory}/task.sock"
        if os.path.lexists(path):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        with open(self._marker, "w", encoding="ascii"):
            pass

    def _release(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for path in (f"{self.directory}/task.sock", self._marker):
            if os.path.lexists(path):
                os.unlink(path)


class FakeSandboxer:
    """Makes `FakeSandbox`es; what shall fail or wait stands in `failures` and `gates`, by the call's name."""

    name = "fake"

    def __init__(self) -> None:
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.recovered: dict[str, bool] = {}
        self.stray_containers: list[Stray] = []
        self.calls: list[tuple[str, str]] = []
        self.failures: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.most_at_once: dict[str, int] = {}
        self._running: dict[str, int] = {}

    def sandbox(self, pod: PodConfig, directory: str, group: str) -> FakeSandbox:
        if pod.hostname == REFUSED_HOSTNAME:
            raise InvalidArgument(f"sandbox {pod.sandbox_id}: this type has no such pods")
        sandbox = FakeSandbox(pod, directory, group, self)
        self.sandboxes[pod.sandbox_id] = sandbox
        return sandbox

    async def settle(self) -> None:
        """Nothing was begun."""

    async def strays(self, known: Container[str]) -> list[Stray]:
        return [stray for stray in self.stray_containers if stray.container_id not in known]

    async def remove_stray(self, container_id: str) -> None:
        await self.pass_gate("remove_stray")
        self.stray_containers = [s for s in self.stray_containers if s.container_id != container_id]

    def close(self) -> None:
        """Stop listening for all pods, as the end of the process would."""
        for sandbox in self.sandboxes.values():
            if sandbox._listener is not None:
                sandbox._listener.close()

    @contextmanager
    def call(self, name: str, sandbox: FakeSandbox) -> Iterator[None]:
        sandbox_id = sandbox.pod.sandbox_id
        self.calls.append((name, sandbox_id))
        self._running[sandbox_id] = self._running.get(sandbox_id, 0) + 1
        self.most_at_once[sandbox_id] = max(self._running[sandbox_id], self.most_at_once.get(sandbox_id, 0))
        try:
            yield
        finally:
            self._running[sandbox_id] -= 1

    async def pass_gate(self, name: str) -> None:
        if (gate := self.gates.get(name)) is not None:
            await gate.wait()
        await asyncio.sleep(0)
        if (failure := self.failures.get(name)) is not None:
            raise failure
