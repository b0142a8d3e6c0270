"""Two hundred pods, one after the other: the daemon is afterwards what it was before."""

from __future__ import annotations

import pytest

from proto.gen.runtime.v1 import api_pb2 as cri
from tests.integration.daemon.client import Controller, Pod
from tests.integration.daemon.lab import Daemon, Lab
from tests.integration.daemon.specs import pod_config

PODS = 200
WARM_UP = 30
GROWTH_LIMIT_KIB = 1024


async def _live_and_die(daemon: Daemon, controller: Controller, number: int, netns: str) -> None:
    """A pod of each kind in turn, with a container, an exec and a wait."""
    kind = number % 4
    network, path = (cri.NODE, "") if kind else (cri.POD, netns)
    config = pod_config(f"loop{number}", network=network, pid=cri.POD if kind == 2 else cri.CONTAINER)
    pod = Pod(daemon, controller, f"loop{number}", config, path)
    await pod.create()
    await pod.start()
    waiting = controller.begin("Wait", pod.id)
    container = await pod.running()
    if kind == 1:
        assert await container.run_exec("true") == (0, "")
    if kind == 3:
        await controller("Stop", pod.id)
    else:
        await container.kill(9)
        assert await container.wait() == 137
        await container.delete()
    container.discard()
    pod.containers.clear()
    await pod.remove()
    await waiting


@pytest.mark.timeout(180)
async def test_two_hundred_pods_leave_nothing(daemon: Daemon, controller: Controller, lab: Lab) -> None:
    with lab.network("endurance") as netns:
        for number in range(WARM_UP):
            await _live_and_die(daemon, controller, number, netns)
        before, before_kib = daemon.inventory(), daemon.memory_kib()
        for number in range(WARM_UP, WARM_UP + PODS):
            await _live_and_die(daemon, controller, number, netns)
        await daemon.expect_nothing_more_than(before)
        assert daemon.memory_kib() - before_kib < GROWTH_LIMIT_KIB
