"""A daemon that starts one machine and may die of a failpoint at it: `python -m ... '{"driver": ..., ...}'`."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any

from common.failpoints import arm
from common.linux.procs import set_child_subreaper
from common.process.exits import ExitWatcher
from vmm.hypervisors.machine import Device, Disk, Place, Share, Vsock

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Disk, Share, Vsock)}


def device_of(fields: dict[str, Any]) -> Device:
    """Return the device that was written down as JSON."""
    device: Device = KINDS[fields.pop("kind")](**fields)
    return device


async def main(request: dict[str, Any]) -> None:
    """Start the machine, attach what is to be attached; leave it running."""
    driver = importlib.import_module(request["driver"])
    set_child_subreaper()
    hypervisor = driver.new_hypervisor(ExitWatcher())
    machine = hypervisor.machine(Place(request["directory"]))
    arm()
    await machine.start(
        driver.boot_config(), [device_of(each) for each in request["devices"]], lambda _exit: None
    )
    for each in request["attached"]:
        await machine.attach(device_of(each))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
