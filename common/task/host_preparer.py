"""What must be true on the host before a container runs in its pod: a checked bundle, a mounted rootfs, our own spec.

The engine's bundle is only read; what the backend runs lies in a directory of ours. The mount point is the
bundle's `rootfs`, which the engine unmounts itself if we cannot any more (engine contract section 5).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Protocol

from common.cgroup import Hierarchies, parse_cgroups_path, remove_leaf
from common.errors import AlreadyExists, InvalidArgument
from common.failpoints import Failpoint, failpoint
from common.linux.mounts import mount_rootfs, unmount_stack
from common.log import get_logger
from common.oci.bundle import CONFIG_FILE, find_rootfs, read_spec, write_spec
from common.oci.spec import (
    PodView,
    Spec,
    check_process,
    fit_to_privileges,
    has_late_hooks,
    has_private_pid_namespace,
    join_pod,
    parse_process,
    process_owner,
    set_version,
)
from common.records import RecordWriter, write_record
from common.task.backend import ContainerRequest, PreparedContainer
from common.task.records import RECORD_FILE, record_of

log = get_logger()


class Attachable(Protocol):
    """A mount that is in place only for those who need it now, told apart by a name; both calls are idempotent."""

    def attach(self, user: str) -> None: ...
    def detach(self, user: str) -> None: ...


class HostPreparer:
    """Prepares the containers of one pod (`ContainerPreparer`)."""

    __slots__ = ("_directory", "_hierarchies", "_may_raise_limits", "_shm", "_view", "_write_record")

    def __init__(
        self,
        view: Callable[[], PodView],
        shm: Attachable,
        directory: str,
        hierarchies: Hierarchies,
        may_raise_limits: bool,
        write_record: RecordWriter = write_record,
    ) -> None:
        """:param view: returns what the pod has ready, which a restart of the daemon changes.
        :param shm: what must be mounted while a container is made that binds it.
        :param directory: where each container gets a directory of its own.
        :param may_raise_limits: whether this daemon has CAP_SYS_RESOURCE.
        """
        self._view = view
        self._shm = shm
        self._directory = directory
        self._hierarchies = hierarchies
        self._may_raise_limits = may_raise_limits
        self._write_record = write_record

    async def prepare(
        self, request: ContainerRequest, undo: AsyncExitStack, is_pod_process: Callable[[int], bool]
    ) -> PreparedContainer:
        """Check the bundle, write our own, mount the rootfs; each step pushes its undo.

        :raise InvalidArgument: the bundle, its spec, or a mount is malformed or refused.
        :raise NotFound: the bundle does not exist.
        """
        self.check_request(request)
        spec = read_spec(request.bundle)
        self.adjust(request, spec, undo)
        check_process(spec["process"], f"{request.bundle}/{CONFIG_FILE}")
        rootfs = find_rootfs(request.bundle, spec)
        if request.rootfs and not rootfs.startswith(f"{request.bundle}/"):
            raise InvalidArgument(f"the rootfs {rootfs} to mount lies outside of the bundle {request.bundle}")
        linux = spec.get("linux") or {}
        cgroups_path = linux.get("cgroupsPath") or ""
        if cgroups_path:
            _check_cgroups_path(request.bundle, cgroups_path)
        pod = self._view()
        join_pod(spec, pod, is_pod_process)
        if not self._may_raise_limits and (lowered := fit_to_privileges(spec["process"])):
            log.warning("container.limits_lowered", reason="no CAP_SYS_RESOURCE", lowered=lowered)
        spec["root"]["path"] = rootfs
        set_version(spec)
        prepared = PreparedContainer(
            directory=f"{self._directory}/{request.container_id}",
            rootfs=rootfs,
            owner=process_owner(spec, spec["process"]),
            cgroups_path=cgroups_path,
            private_pid_namespace=has_private_pid_namespace(spec),
            mapped=bool(linux.get("uidMappings") or linux.get("gidMappings")),
            mounted=bool(request.rootfs),
            keep_mounted=has_late_hooks(spec),
        )
        os.makedirs(self._directory, 0o700, exist_ok=True)
        try:
            os.mkdir(prepared.directory, 0o700)
        except FileExistsError:
            raise AlreadyExists(
                f"container {request.container_id} has left its directory {prepared.directory} behind"
            ) from None
        undo.callback(_remove_directory, prepared.directory)
        self._write_record(f"{prepared.directory}/{RECORD_FILE}", record_of(request, prepared))
        failpoint(Failpoint.CONTAINER_RECORDED)
        if request.rootfs:
            undo.callback(unmount_stack, rootfs)
            _mount(request, rootfs, pod.namespaces.get("user"))
            failpoint(Failpoint.CONTAINER_ROOTFS_MOUNTED)
        undo.callback(self._shm.detach, request.container_id)
        self._shm.attach(request.container_id)
        write_spec(prepared.directory, spec)
        failpoint(Failpoint.CONTAINER_SPEC_WRITTEN)
        return prepared

    def check_request(self, request: ContainerRequest) -> None:
        """Refuse what is not to be had here at all."""

    def adjust(self, request: ContainerRequest, spec: Spec, undo: AsyncExitStack) -> None:
        """Change the spec for where it is run, before it is looked at; each step pushes its undo."""

    async def settle(self, container: PreparedContainer) -> None:
        """Unmount the rootfs and /dev/shm here: the container has them in its own mount namespace.

        So a node carries no mount per container, which every program that reads or copies the mount table
        pays for, and a daemon that dies leaves none behind.
        """
        self._shm.detach(os.path.basename(container.directory))
        if container.mounted and not container.keep_mounted:
            unmount_stack(container.rootfs)

    async def release(self, container: PreparedContainer) -> None:
        """Unmount the rootfs, remove the container's cgroup if the runtime has left it, and our directory."""
        if container.mounted:
            unmount_stack(container.rootfs)
        cgroup = self._hierarchies.of_container(container.cgroups_path, os.path.basename(container.directory))
        if cgroup is not None:
            remove_leaf(cgroup)
        _remove_directory(container.directory)

    def prepare_process(self, container: PreparedContainer, process: bytes) -> tuple[bytes, tuple[int, int]]:
        """Check an Exec's process; return it with limits that we can grant, and the host's (uid, gid) of it."""
        parsed = parse_process(process, "the exec's process")
        if not self._may_raise_limits and fit_to_privileges(parsed):
            process = json.dumps(parsed, separators=(",", ":")).encode()
        if not container.mapped:
            return process, process_owner({}, parsed)
        with open(f"{container.directory}/{CONFIG_FILE}", "rb") as file:
            return process, process_owner(json.loads(file.read()), parsed)


def _mount(request: ContainerRequest, rootfs: str, user_namespace: str | None) -> None:
    userns_fd = os.open(user_namespace, os.O_RDONLY | os.O_CLOEXEC) if user_namespace else None
    try:
        mount_rootfs(request.rootfs, rootfs, userns_fd)
    except OSError as error:
        raise InvalidArgument(
            f"cannot mount the rootfs of container {request.container_id}: {error}"
        ) from error
    finally:
        if userns_fd is not None:
            os.close(userns_fd)


def _check_cgroups_path(bundle: str, path: str) -> None:
    try:
        parse_cgroups_path(path)
    except InvalidArgument as error:
        raise InvalidArgument(f"the spec of {bundle}: {error}") from None


def _remove_directory(path: str) -> None:
    if os.path.lexists(path):
        shutil.rmtree(path)
