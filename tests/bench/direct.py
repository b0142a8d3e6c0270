"""Containers of modules started as an engine does it, without one: what a sandboxer alone takes until a first line."""

import asyncio
import itertools
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from proto.gen.runtime.v1 import api_pb2 as api
from tests.integration.daemon.client import Container, Controller, Pod
from tests.integration.daemon.events import Events
from tests.integration.daemon.lab import IMAGE, Daemon, Lab
from tests.integration.daemon.specs import pod_config

_serial = itertools.count(1)


class ModuleStarts:
    """A pod of a sandboxer, and the image that its containers have."""

    def __init__(self, lab: Lab, pod: Pod) -> None:
        self._image = lab.path(IMAGE)
        self._pod = pod

    def install(self, module: Path) -> str:
        """Put a module into the image and return its path there."""
        shutil.copyfile(module, self._image / module.name)
        return f"/{module.name}"

    async def first_line_s(self, module: str) -> float:
        """Create and start a container; how long it took until it had written a line. It is gone then."""
        return await self.first_lines_s(module, 1)

    async def first_lines_s(self, module: str, count: int) -> float:
        """The same for many containers at once: how long until each of them had written a line."""
        containers = [self._pod.container(module, streams=("stdout",)) for _ in range(count)]
        began = time.perf_counter()
        await asyncio.gather(*(_first_line(container) for container in containers))
        took_s = time.perf_counter() - began
        for container in containers:
            await container.remove()
            self._pod.containers.remove(container)
        return took_s


async def _first_line(container: Container) -> None:
    await container.create()
    await container.start()
    await container.stdout.until(b"\n")


@asynccontextmanager
async def module_starts(
    lab: Lab, engine: str, python: Path = Path(sys.executable)
) -> AsyncIterator[ModuleStarts]:
    """A sandboxer that runs modules with an engine, and one pod on the host's network."""
    name = f"wasm{next(_serial)}"
    daemon = Daemon(
        lab, name, "wasm", python, modules={"engine": engine, "cache_dir": f"/run/lab/{name}-cache"}
    )
    await daemon.start()
    events = Events(daemon)
    controller = Controller(daemon)
    pod = Pod(daemon, controller, name, pod_config(name, network=api.NODE), "")
    try:
        await pod.create()
        await pod.start()
        yield ModuleStarts(lab, pod)
        await pod.remove()
    finally:
        await controller.close()
        events.close()
        daemon.stop()
