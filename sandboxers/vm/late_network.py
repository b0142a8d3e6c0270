"""The network of a pod whose engine gives it one only after it has started (iSulad contract section 0.1).

Nothing tells when the engine's plugins are done, but nobody makes a container before they are. So the interfaces are
looked for then, plugged into the running machine, and told to the guest.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, ExitStack
from typing import Final

from common.failpoints import Failpoint, failpoint
from common.log import get_logger
from sandboxers.vm.network import (
    NETWORK_DEVICE,
    attach_network,
    describe_network,
    detach_network,
    network_devices,
)
from vmm.guest.client import GuestClient
from vmm.hypervisors.hypervisor import VirtualMachine

_ADD_TIMEOUT_S: Final = 15.0

log = get_logger()


class LateNetwork:
    """What is between the engine's namespace and the running machine of one pod."""

    __slots__ = ("_guest", "_joined", "_joining", "_machine", "_netns_path")

    def __init__(self, netns_path: str, machine: VirtualMachine, guest: GuestClient) -> None:
        self._netns_path = netns_path
        self._machine = machine
        self._guest = guest
        self._joined = False
        self._joining = asyncio.Lock()

    async def join(self) -> None:
        """See to it that the guest has the interfaces that are in the namespace now; once there are some, that is all.

        Idempotent, also for a daemon that comes after one that died in here.

        :raise InvalidArgument: an interface is of a kind that cannot be continued into a guest.
        """
        async with self._joining:
            if not self._joined:
                self._joined = await self._join()

    async def _join(self) -> bool:
        wanted = describe_network(self._netns_path)
        present = [device for device in self._machine.devices() if device.startswith(NETWORK_DEVICE)]
        if len(present) != len(wanted):
            for device in present:
                await self._machine.detach(device)
            await self._plug_in()
        failpoint(Failpoint.SANDBOX_NETWORK_PLUGGED)
        for interface in wanted:
            await self._guest.add_interface(interface, _ADD_TIMEOUT_S)
        failpoint(Failpoint.SANDBOX_NETWORK_JOINED)
        log.debug("network.joined", netns=self._netns_path, interfaces=len(wanted))
        return bool(wanted)

    async def _plug_in(self) -> None:
        # An earlier daemon's taps are gone with it, what leads to them is not.
        detach_network(self._netns_path)
        async with AsyncExitStack() as undo:
            interfaces = attach_network(self._netns_path)
            undo.callback(detach_network, self._netns_path)
            with ExitStack() as taps:
                for each in interfaces:
                    # The hypervisor gets a copy of its own.
                    taps.callback(os.close, each.tap_fd)
                failpoint(Failpoint.SANDBOX_NETWORK_ATTACHED)
                for device in network_devices(interfaces):
                    await self._machine.attach(device)
                    undo.push_async_callback(self._machine.detach, device.device_id)
            undo.pop_all()
