"""What a descriptor store has kept of a pod, told apart; and the pod's sockets, which a new daemon finds there."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from common.descriptors.kinds import link_of
from common.descriptors.store import DescriptorStore
from common.linux.namespaces import Kind

_SHM_GROUP = "s"


def shm_group(group: str) -> str:
    """Return the name under which the shared memory of the pod with this group is kept."""
    return _SHM_GROUP + group[1:]


class KeptPod:
    """Owns what was kept of one pod until somebody takes it over."""

    __slots__ = ("listener", "namespaces", "pidfd", "shm")

    def __init__(self) -> None:
        self.listener: socket.socket | None = None
        self.namespaces: dict[Kind, int] = {}
        self.pidfd: int | None = None
        self.shm: list[int] = []

    @classmethod
    def take(cls, store: DescriptorStore, group: str) -> KeptPod:
        """Take what an earlier daemon has put there; all may be missing."""
        kept = cls()
        for fd in store.take(group):
            kind = link_of(fd).partition(":")[0]
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                kept.listener = socket.socket(fileno=fd)
            elif kind in {k.value for k in Kind}:
                kept.namespaces[Kind(kind)] = fd
            else:
                kept.pidfd = fd
        kept.shm = store.take(shm_group(group))
        return kept

    def close(self) -> None:
        """Let go of all but the listener."""
        for fd in (*self.namespaces.values(), *self.shm, *([] if self.pidfd is None else [self.pidfd])):
            os.close(fd)
        self.namespaces, self.shm, self.pidfd = {}, [], None


def remove_console_sockets(directory: str) -> None:
    """Remove the sockets on which a daemon that died was waiting for terminals."""
    for name in os.listdir(directory):
        if name.startswith("tty") and name.endswith(".sock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{directory}/{name}")
