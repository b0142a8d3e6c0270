"""What must be true on the host before the agent makes a container: a bundle in the share, disks plugged in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from common.errors import InvalidArgument, NotFound, SandboxdError
from common.failpoints import Failpoint, failpoint
from common.linux.mounts import MountSpec
from common.log import get_logger
from common.oci.bundle import CONFIG_FILE, find_rootfs, read_spec
from common.oci.spec import Spec, check_process
from sandboxers.vm.guest_spec import BlockDevice, find_binds, find_block_devices, rewrite_for_guest
from sandboxers.vm.late_network import LateNetwork
from sandboxers.vm.share import SHARE_TAG, PodShare
from vmm.guest.client import GuestClient
from vmm.hypervisors.hypervisor import VirtualMachine
from vmm.hypervisors.machine import Disk
from vmm.protocol import share_path

_FIND_TIMEOUT_S = 15.0

log = get_logger()


class GuestPreparer:
    """Prepares the containers of one VM pod."""

    __slots__ = ("_disks", "_guest", "_late_network", "_machine", "_share")

    def __init__(
        self,
        share: PodShare,
        guest: GuestClient,
        machine: VirtualMachine,
        late_network: LateNetwork | None = None,
    ) -> None:
        """:param late_network: what the first container waits for, where the pod may have started without one."""
        self._late_network = late_network
        self._share = share
        self._guest = guest
        self._machine = machine
        self._disks = 0

    async def prepare(
        self,
        container_id: str,
        bundle: str,
        rootfs: Sequence[MountSpec],
        note_disk: Callable[[str], None],
    ) -> None:
        """Make a container's bundle in the share; `release` takes all back.

        :param note_disk: told of each disk before it is plugged in.
        :raise InvalidArgument: bundle, spec or a mount is malformed, or asks for what a guest cannot have.
        :raise NotFound: the bundle does not exist.
        """
        spec = read_spec(bundle)
        check_process(spec["process"], f"{bundle}/{CONFIG_FILE}")
        binds = find_binds(spec)
        devices = find_block_devices(spec)
        source = find_rootfs(bundle, spec)
        if self._late_network is not None:
            await self._late_network.join()
        self._share.begin(container_id)
        try:
            if rootfs:
                self._share.mount_rootfs(container_id, rootfs)
            else:
                self._share.bind_rootfs(container_id, source)
        except OSError as error:
            raise InvalidArgument(f"cannot mount the rootfs of container {container_id}: {error}") from error
        failpoint(Failpoint.CONTAINER_ROOTFS_MOUNTED)
        root = share_path(SHARE_TAG)
        sources = {
            bind.position: f"{root}/{self._share.bind(container_id, number, bind)}"
            for number, bind in enumerate(binds)
        }
        failpoint(Failpoint.CONTAINER_VOLUMES_MOUNTED)
        disks = {device.position: await self._plug_in(spec, device, note_disk) for device in devices}
        dropped = rewrite_for_guest(spec, sources, disks)
        if dropped:
            log.debug("container.spec_reduced", container_id=container_id, dropped=dropped)
        self._share.write_spec(container_id, spec)

    async def release(self, container_id: str, disks: Sequence[str]) -> None:
        """Take back what `prepare` has done; idempotent."""
        for device_id in disks:
            with contextlib.suppress(NotFound):
                try:
                    await self._machine.detach(device_id)
                except SandboxdError as error:
                    if self._machine.exit is None:
                        log.warning("disk.not_detached", device_id=device_id, error=error)
        self._share.remove_container(container_id)

    async def _plug_in(
        self, spec: Spec, device: BlockDevice, note_disk: Callable[[str], None]
    ) -> tuple[int, int]:
        path = _node_of(device)
        rules = ((spec.get("linux") or {}).get("resources") or {}).get("devices") or []
        read_only = any(
            (rule.get("type"), rule.get("major"), rule.get("minor")) == ("b", device.major, device.minor)
            and "w" not in str(rule.get("access", "rwm"))
            for rule in rules
        )
        self._disks += 1
        device_id = f"vol-{self._disks}-{os.urandom(3).hex()}"
        note_disk(device_id)
        await self._machine.attach(Disk(device_id, path, read_only))
        failpoint(Failpoint.CONTAINER_DISK_ATTACHED)
        found = await self._guest.find_disk(device_id, _FIND_TIMEOUT_S)
        return found.major, found.minor


def guest_bundle(container_id: str) -> str:
    """Return the path of a container's bundle in the guest."""
    return f"{share_path(SHARE_TAG)}/{container_id}"


def _node_of(device: BlockDevice) -> str:
    """Return the host's node of a block device, whatever its path in the container is (sysfs(5))."""
    try:
        with open(f"/sys/dev/block/{device.major}:{device.minor}/uevent", encoding="utf-8") as file:
            values = dict(line.strip().split("=", 1) for line in file if "=" in line)
    except FileNotFoundError:
        raise InvalidArgument(
            f"the block device {device.path} ({device.major}:{device.minor}) does not exist on the host"
        ) from None
    return f"/dev/{values['DEVNAME']}"
