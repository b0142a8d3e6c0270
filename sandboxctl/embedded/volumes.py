"""The volumes of a pod: where they are on this machine, and parts of them from which no link leads out.

Containers of the pod write to its volumes while others are started, so that whatever lies in one is hostile: a link
in the place of a directory would give a container a part of this machine.
"""

from __future__ import annotations

import os
import stat

from common.errors import FailedPrecondition, InvalidArgument
from common.linux.mounts import attach_mount, cloned_tree, unmount_all
from sandboxctl.embedded.plan import ContainerPlan, Volume
from sandboxctl.embedded.records import PodRecord

_FOR_ALL = 0o777
"""Of all who may run in the pod, as Kubernetes has it (emptyDir)."""


def place_volumes(
    container: ContainerPlan, container_id: str, record: PodRecord
) -> list[tuple[str, str, bool]]:
    """Return (source, destination, read only) of a container's volumes; a part of a volume is mounted by itself.

    :raise InvalidArgument: a part is to be found behind a symbolic link.
    :raise FailedPrecondition: something that is not the pod's own does not exist.
    :raise OSError: it cannot be made or mounted.
    """
    return [
        (
            _place(volume, record, f"{record.volumes_directory}/{container_id}-{number}"),
            volume.destination,
            volume.read_only,
        )
        for number, volume in enumerate(container.volumes)
    ]


def remove_volume_mounts(record: PodRecord) -> None:
    """Unmount all parts of volumes of a pod. Idempotent. Raises OSError."""
    unmount_all(record.volumes_directory)


def open_part(root: str, part: str, *, make: bool) -> int:
    """Open (O_PATH) what is at the relative path `part` below a directory, without following a link there.

    :param make: whether directories that are missing are made, for all to write to.
    :raise InvalidArgument: a symbolic link or ".." is on the way.
    :raise OSError: there is no such path.
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in part.split("/"):
            if name in ("", "."):
                continue
            if make:
                _make(name, fd)
            inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
            if name == ".." or stat.S_ISLNK(os.fstat(fd).st_mode):
                raise InvalidArgument(f"the subPath {part[:200]!r} leads through {name!r}, which is a link")
        return fd
    except BaseException:
        os.close(fd)
        raise


def _place(volume: Volume, record: PodRecord, mount_point: str) -> str:
    root = volume.source
    if volume.scratch:
        root = f"{record.data_directory}/scratch/{volume.scratch}"
        os.makedirs(os.path.dirname(root), exist_ok=True)
        _make(root)
    elif not os.path.exists(root):
        raise FailedPrecondition(f"the volume for {volume.destination} does not exist: {root}")
    if not volume.part:
        return root
    try:
        fd = open_part(root, volume.part, make=bool(volume.scratch))
    except OSError as error:
        raise FailedPrecondition(
            f"the volume for {volume.destination} has no {volume.part[:200]!r}: {error.strerror}"
        ) from None
    try:
        _mount(fd, mount_point)
    finally:
        os.close(fd)
    return mount_point


def _mount(fd: int, mount_point: str) -> None:
    os.makedirs(os.path.dirname(mount_point), 0o700, exist_ok=True)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.mkdir(mount_point)
    else:
        os.close(os.open(mount_point, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    # By its descriptor: the path may lead elsewhere by now.
    with cloned_tree(f"/proc/self/fd/{fd}") as tree:
        attach_mount(tree, mount_point)


def _make(path: str, dir_fd: int | None = None) -> None:
    try:
        os.mkdir(path, dir_fd=dir_fd)
    except FileExistsError:
        return
    # By its descriptor, as chmod(2) follows links, and past the umask.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fchmod(fd, _FOR_ALL)
    finally:
        os.close(fd)
