"""The OCI runtime of a guest: crun, which starts a container by one byte that the agent writes by itself.

What `crun create` has made waits for it at the other end of a FIFO, <root>/<container>/exec.fifo (crun,
src/libcrun/status.c). To load crun once more only to write it is a third of a container's start on a processor that is
emulated. What else `crun start` can do a guest never asks for: hooks are refused, there is no socket to notify.
"""

from __future__ import annotations

import os

from common.oci.runtime import OciRuntime


class GuestRuntime(OciRuntime):
    """Crun with one state root, in the version that the image has."""

    __slots__ = ()

    async def start(self, container_id: str, bundle: str) -> None:
        """Let the created process execute the user's command; where it does not wait for that, crun says why not."""
        if not self._open_gate(f"{self.root}/{container_id}/exec.fifo"):
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
