"""The directory that a pod shares with its guest (virtiofs).

    bundles/<container>/config.json, rootfs/, mounts/<n>    files and mount points, made here and by us alone
    share/                                                  a read-only bind mount of bundles/, which the guest sees

What a container may write is mounted below `share/`, so that it appears neither below `bundles/` nor anywhere else that
this process walks through: a guest cannot put a symbolic link in its way. `share/` propagates mounts, so those that
are made after the start of virtiofsd reach it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence

from common.errors import InvalidArgument
from common.linux.flags import MS_BIND, MS_RDONLY, MS_REMOUNT, MS_SHARED, MS_SLAVE
from common.linux.mounts import (
    MountSpec,
    attach_mount,
    cloned_tree,
    mount,
    mount_rootfs,
    mounts_below,
    umount,
    unmount_stack,
)
from common.oci.bundle import write_spec
from common.oci.spec import Spec
from sandboxers.vm.guest_spec import BindMount

SHARE_TAG = "pod"


class PodShare:
    """The shared directory of one pod; `directory` is the pod's own."""

    __slots__ = ("_bundles", "path")

    def __init__(self, directory: str) -> None:
        self._bundles = f"{directory}/bundles"
        self.path = f"{directory}/share"

    def make(self) -> None:
        """Make both directories and the mount; all or nothing."""
        os.mkdir(self._bundles, 0o700)
        os.mkdir(self.path, 0o700)
        try:
            mount(self._bundles, self.path, None, MS_BIND)
            # First a peer group of its own, else what is mounted here would appear wherever the parent's peers are.
            mount(None, self.path, None, MS_SLAVE)
            mount(None, self.path, None, MS_SHARED)
            mount(None, self.path, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Unmount all that is below, and remove the directories. Idempotent."""
        for point in reversed(mounts_below(os.path.realpath(self.path))):
            with contextlib.suppress(OSError):
                umount(point)
        for directory in (self.path, self._bundles):
            with contextlib.suppress(FileNotFoundError):
                if directory == self.path:
                    os.rmdir(directory)
                else:
                    shutil.rmtree(directory)

    def begin(self, container_id: str) -> None:
        """Make the directories of a container's bundle, in place of what an earlier attempt has left."""
        self.remove_container(container_id)
        os.mkdir(f"{self._bundles}/{container_id}", 0o700)
        os.mkdir(f"{self._bundles}/{container_id}/rootfs", 0o755)
        os.mkdir(f"{self._bundles}/{container_id}/mounts", 0o700)

    def mount_rootfs(self, container_id: str, mounts: Sequence[MountSpec]) -> None:
        """Mount a container's root file system. Raises what `mount_rootfs` raises."""
        mount_rootfs(mounts, f"{self.path}/{container_id}/rootfs")

    def bind_rootfs(self, container_id: str, rootfs: str) -> None:
        """Show a root file system that somebody else has made. Raises OSError."""
        with cloned_tree(rootfs) as tree:
            attach_mount(tree, f"{self.path}/{container_id}/rootfs")

    def bind(self, container_id: str, number: int, bind: BindMount) -> str:
        """Show a directory or file of the host to the guest; return its path relative to the share.

        :raise InvalidArgument: it does not exist, or is neither.
        """
        relative = f"{container_id}/mounts/{number}"
        place = f"{self._bundles}/{relative}"
        try:
            with cloned_tree(bind.source, read_only=bind.read_only, recursively=bind.recursively) as tree:
                mode = os.fstat(tree).st_mode
                if stat.S_ISDIR(mode):
                    os.mkdir(place, 0o700)
                elif stat.S_ISREG(mode):
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                    os.close(os.open(place, flags, 0o600))
                else:
                    raise InvalidArgument(
                        f"cannot share {bind.source[:300]} with the guest: only directories and regular files can be"
                    )
                attach_mount(tree, f"{self.path}/{relative}")
        except OSError as error:
            raise InvalidArgument(
                f"cannot share {bind.source[:300]} with the guest: {error.strerror}"
            ) from None
        return relative

    def write_spec(self, container_id: str, spec: Spec) -> None:
        """Write the config.json of a container's bundle."""
        write_spec(f"{self._bundles}/{container_id}", spec)

    def remove_container(self, container_id: str) -> None:
        """Unmount and remove all of a container. Idempotent."""
        place = f"{self._bundles}/{container_id}"
        if not os.path.lexists(place):
            return
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(f"{place}/mounts"):
                unmount_stack(f"{self.path}/{container_id}/mounts/{name}")
        unmount_stack(f"{self.path}/{container_id}/rootfs")
        shutil.rmtree(place)
