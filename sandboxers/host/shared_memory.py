"""The /dev/shm that a pod's containers share: a tmpfs that is mounted only while a container is being made.

In between it is held as a descriptor, and by the containers that have it in their mount namespaces. A new daemon
finds it mounted, in the descriptor store, or in such a container; where there is none of these, it makes a new one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from common.linux.mounts import attach_mount, hold_mount, hold_mount_of, mount_tmpfs, unmount_stack
from common.records import read_record, write_record

_IN_CONTAINER = "/dev/shm"


@dataclass(frozen=True, slots=True)
class SharedMemoryRecord:
    """By which a new daemon knows the tmpfs again: its device number."""

    VERSION: ClassVar[int] = 1

    device: int


class SharedMemory:
    """Owns the descriptor, and the mount while there are users. `path` is where it is mounted then."""

    __slots__ = ("_held", "_owner", "_size_bytes", "_spare", "_users", "path")

    def __init__(self, path: str, size_bytes: int, owner: tuple[int, int]) -> None:
        """:param owner: the host's uid and gid of the pod's root."""
        self.path = path
        self._size_bytes = size_bytes
        self._owner = owner
        self._held = self._spare = -1
        self._users: set[str] | None = None

    def make(self) -> None:
        """Make the tmpfs and record it; all or nothing."""
        os.mkdir(self.path, 0o700)
        try:
            self._mount_new()
            self._hold()
            self.settle()
        except BaseException:
            self.release()
            raise

    def take_spare(self) -> int:
        """Return a descriptor of a mount of it that was never attached, for a later daemon; -1: there is none.

        The caller owns it.
        """
        spare, self._spare = self._spare, -1
        return spare

    def recover(self, pids: Iterable[int], kept: Sequence[int] = ()) -> None:
        """Hold again what an earlier daemon has made, and leave it mounted until `settle`.

        To attach what was kept spends it: until another spare is kept, a daemon that comes after this one finds
        the tmpfs where it is mounted, or not at all.

        :param pids: those that run in the pod.
        :param kept: what `take_spare` had returned then, some of it spent perhaps; taken over.
        """
        try:
            if not self._is_mounted():
                unmount_stack(self.path)
                os.makedirs(self.path, 0o700, exist_ok=True)
                if not (any(self._attached(held) for held in kept) or any(self._found(pid) for pid in pids)):
                    self._mount_new()
            self._hold()
        finally:
            for fd in kept:
                os.close(fd)

    def settle(self) -> None:
        """Let go of the mount point, but not of what is mounted there."""
        unmount_stack(self.path)

    def attach(self, user: str) -> None:
        """Mount it for a user."""
        if self._users:
            self._users.add(user)
            return
        attach_mount(self._held, self.path)
        self._users = {user}
        # What is attached cannot be attached again: hold another one.
        attached, self._held = self._held, hold_mount(self.path)
        os.close(attached)

    def detach(self, user: str) -> None:
        """Unmount it after its last user."""
        if self._users:
            self._users.discard(user)
            if not self._users:
                self._users = None
                unmount_stack(self.path)

    def release(self) -> None:
        """Let go of it. Idempotent."""
        self._users = None
        unmount_stack(self.path)
        for fd in (self._held, self._spare):
            if fd >= 0:
                os.close(fd)
        self._held = self._spare = -1

    @property
    def _record_path(self) -> str:
        return f"{self.path}.json"

    def _is_mounted(self) -> bool:
        device = self._recorded_device()
        return device is not None and os.path.isdir(self.path) and os.stat(self.path).st_dev == device

    def _attached(self, held: int) -> bool:
        """Attach a mount, unless it was attached before (EINVAL) or is not the pod's."""
        if os.fstat(held).st_dev != self._recorded_device():
            return False
        with contextlib.suppress(OSError):
            attach_mount(held, self.path)
            return True
        return False

    def _found(self, pid: int) -> bool:
        """Attach what a process has at its /dev/shm, if that is the pod's."""
        with contextlib.suppress(OSError):
            held = hold_mount_of(pid, _IN_CONTAINER)
            try:
                return self._attached(held)
            finally:
                os.close(held)
        return False

    def _recorded_device(self) -> int | None:
        try:
            record, _ = read_record(self._record_path, SharedMemoryRecord)
        except FileNotFoundError:
            return None
        return record.device

    def _mount_new(self) -> None:
        mount_tmpfs(self.path, self._size_bytes, 0o1777, *self._owner)
        try:
            write_record(self._record_path, SharedMemoryRecord(os.stat(self.path).st_dev))
        except BaseException:
            unmount_stack(self.path)
            raise

    def _hold(self) -> None:
        self._held = hold_mount(self.path)
        self._spare = hold_mount(self.path)


class HostSharedMemory:
    """The host's /dev/shm, for a pod that lives in the host's IPC namespace: always there."""

    __slots__ = ()
    path = _IN_CONTAINER

    def make(self) -> None:
        """It is there."""

    def take_spare(self) -> int:
        """There is none: it is the host's."""
        return -1

    def recover(self, pids: Iterable[int], kept: Sequence[int] = ()) -> None:
        """It is there."""

    def settle(self) -> None:
        """It stays."""

    def attach(self, user: str) -> None:
        """It is attached."""

    def detach(self, user: str) -> None:
        """It stays."""

    def release(self) -> None:
        """It is not ours."""
