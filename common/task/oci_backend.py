"""A backend that drives an OCI runtime's command line."""

from __future__ import annotations

import contextlib
import os

from common.cgroup import parse_cgroups_path
from common.errors import AlreadyExists
from common.oci.runtime import OciRuntime
from common.oci.spec import check_resources
from common.task.backend import PreparedContainer
from common.task.stdio import Stdio


class OciBackend:
    """Runs containers with crun, runc or any other OCI runtime (`TaskBackend`)."""

    __slots__ = ("_creating", "_runtime")

    def __init__(self, runtime: OciRuntime) -> None:
        self._runtime = runtime
        self._creating: set[str] = set()

    async def create(self, container_id: str, container: PreparedContainer, stdio: Stdio) -> int:
        """Make the container, whose first process then waits for start(), or nothing.

        :raise AlreadyExists: the id is taken, perhaps in another pod; that container is left alone.
        """
        if container_id in self._creating or self._runtime.knows(container_id):
            raise AlreadyExists(f"container {container_id} exists already, in another pod")
        self._creating.add(container_id)
        try:
            return await self._create(container_id, container, stdio)
        except BaseException:
            await self._runtime.delete(container_id, container.directory)
            raise
        finally:
            self._creating.discard(container_id)

    async def _create(self, container_id: str, container: PreparedContainer, stdio: Stdio) -> int:
        terminal = stdio.terminal
        path = container.cgroups_path
        systemd_cgroup = bool(path) and parse_cgroups_path(path).systemd
        pid = await self._runtime.create(
            container_id,
            container.directory,
            stdio.child_fds,
            terminal.socket_path if terminal else None,
            systemd_cgroup,
        )
        if terminal:
            await terminal.receive_master(self._runtime.timeout_s)
        return pid

    async def start(self, container_id: str, container: PreparedContainer) -> None:
        """Let the first process run the user's command."""
        await self._runtime.start(container_id, container.directory)

    async def is_started(self, container_id: str, container: PreparedContainer) -> bool:
        """Ask the runtime whether the first process runs the user's command."""
        return await self._runtime.status(container_id, container.directory) != "created"

    def pid_of_exec(self, exec_id: str, container: PreparedContainer) -> int | None:
        """Look at the files that an exec leaves while it is being started."""
        path = _process_file(container, exec_id)
        if not os.path.lexists(path):
            return None
        return self._runtime.pid_of_exec(path)

    def forget_exec(self, exec_id: str, container: PreparedContainer) -> None:
        """Remove the files of an exec."""
        path = _process_file(container, exec_id)
        self._runtime.forget_exec(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    async def exec(
        self, container_id: str, exec_id: str, container: PreparedContainer, process: bytes, stdio: Stdio
    ) -> int:
        """Start one more process in the container; its files stay until `forget_exec`."""
        terminal = stdio.terminal
        path = _process_file(container, exec_id)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(process)
        try:
            pid = await self._runtime.exec(
                container_id, path, stdio.child_fds, terminal.socket_path if terminal else None
            )
            if terminal:
                await terminal.receive_master(self._runtime.timeout_s)
            return pid
        except BaseException:
            self.forget_exec(exec_id, container)
            raise

    async def delete(self, container_id: str, container: PreparedContainer) -> None:
        """Remove the container, killing what is left of it."""
        await self._runtime.delete(container_id, container.directory)

    async def pause(self, container_id: str, container: PreparedContainer) -> None:
        """Freeze all processes of the container."""
        await self._runtime.pause(container_id, container.directory)

    async def resume(self, container_id: str, container: PreparedContainer) -> None:
        """Thaw all processes of the container."""
        await self._runtime.resume(container_id, container.directory)

    async def update(self, container_id: str, container: PreparedContainer, resources: bytes) -> None:
        """Apply new limits."""
        check_resources(resources, f"the update of container {container_id}")
        await self._runtime.update(container_id, container.directory, resources)


def _process_file(container: PreparedContainer, exec_id: str) -> str:
    return f"{container.directory}/exec-{exec_id}.json"
