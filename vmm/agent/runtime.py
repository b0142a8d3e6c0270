"""The OCI runtime of a guest: crun, which starts a container by one byte that the agent writes by itself.

What `crun create` has made waits for it at the other end of a FIFO, <root>/<container>/exec.fifo (crun,
src/libcrun/status.c). To load crun once more only to write it is a third of a container's start on a processor that is
emulated. What else `crun start` can do a guest never asks for: hooks are refused, there is no socket to notify.
"""

from __future__ import annotations

import contextlib
import os

from common.errors import FailedPrecondition
from common.oci.runtime import OciRuntime
from common.process.exits import ExitWatcher


class MountNamespaces:
    """Those of the containers, held open until the host has answered what was asked of their files.

    What the host has mounted in a volume this kernel mounts when somebody comes by, in the namespace of who that is.
    A container's ends with its last process, and such a mount with it, while files in it may be busy
    (`vmm.agent.devices.settle_share`).
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def hold(self, container_id: str, pid: int) -> None:
        """Hold that of a container's first process; one that has ended already has come by nothing."""
        if (left := self.take(container_id)) is not None:
            os.close(left)
        with contextlib.suppress(OSError):
            self._held[container_id] = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def take(self, container_id: str) -> int | None:
        """Return the descriptor of a container's, if it is held: it is the caller's to close from now on."""
        return self._held.pop(container_id, None)


class GuestRuntime(OciRuntime):
    """Crun with one state root, in the version that the image has."""

    __slots__ = ("_namespaces",)

    def __init__(
        self, binary: str, root: str, watcher: ExitWatcher, timeout_s: float, namespaces: MountNamespaces
    ) -> None:
        """:param namespaces: holds that of each container; whoever releases a container lets go of it."""
        super().__init__(binary, root, watcher, timeout_s)
        self._namespaces = namespaces

    async def create(
        self,
        container_id: str,
        bundle: str,
        stdio: tuple[int, int, int],
        console_socket: str | None,
        systemd_cgroup: bool,
    ) -> int:
        """Create a container, and hold its mount namespace."""
        pid = await super().create(container_id, bundle, stdio, console_socket, systemd_cgroup)
        self._namespaces.hold(container_id, pid)
        return pid

    async def start(self, container_id: str, bundle: str) -> None:
        """Let the created process execute the user's command; where it does not wait for that, crun says why not.

        :raise FailedPrecondition: it has ended in this very moment.
        """
        try:
            if self._open_gate(f"{self.root}/{container_id}/exec.fifo"):
                return
        except BrokenPipeError:
            raise FailedPrecondition(
                f"container {container_id} has ended while it was started: it was killed, or ran out of memory"
            ) from None
        await super().start(container_id, bundle)

    @staticmethod
    def _open_gate(path: str) -> bool:
        try:
            # Where nobody reads it, it cannot be opened for writing (fifo(7)).
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # Before the byte, as crun does: without its FIFO a container counts as started.
            os.unlink(path)
            os.write(fd, b"\0")
        finally:
            os.close(fd)
        return True
