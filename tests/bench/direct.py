"""Containers started as an engine does it, without one: what a sandboxer alone takes until a first line."""

import asyncio
import itertools
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from proto.gen.runtime.v1 import api_pb2 as api
from tests.integration.daemon.client import Container, Controller, Pod
from tests.integration.daemon.events import Events
from tests.integration.daemon.lab import IMAGE, Daemon, Lab
from tests.integration.daemon.specs import pod_config

_UNTIL_IT_WAITS_S = 0.1
_serial = itertools.count(1)


class Starts:
    """A pod of a sandboxer, and the image that its containers have. `mounts` are read-only directories of ours."""

    def __init__(self, lab: Lab, pod: Pod, mounts: Sequence[Path]) -> None:
        self._image = lab.path(IMAGE)
        self._pod = pod
        self._mounts = mounts

    def install(self, file: Path) -> str:
        """Put a file into the image and return its path there."""
        shutil.copy(file, self._image / file.name)
        return f"/{file.name}"

    async def first_line_s(self, *command: str) -> float:
        """Create and start a container; how long it took until it had written a line. It is gone then."""
        return await self.first_lines_s(1, *command)

    async def first_lines_s(self, count: int, *command: str) -> float:
        """The same for many containers at once: how long until each of them had written a line."""
        containers = [self._container(command) for _ in range(count)]
        began = time.perf_counter()
        await asyncio.gather(*(_first_line(container) for container in containers))
        took_s = time.perf_counter() - began
        for container in containers:
            await container.remove()
            self._pod.containers.remove(container)
        return took_s

    async def stop_s(self, *command: str) -> float:
        """Start a container that waits, for its input or for ever; how long it takes to end after SIGTERM."""
        container = self._container(command, ("stdin", "stdout"))
        await container.create()
        await container.start()
        await asyncio.sleep(_UNTIL_IT_WAITS_S)
        began = time.perf_counter()
        await container.kill(signal.SIGTERM)
        code = await container.wait()
        took_s = time.perf_counter() - began
        await container.remove()
        self._pod.containers.remove(container)
        if code != 128 + signal.SIGTERM:
            raise RuntimeError(f"{command[0]} ended with {code}")
        return took_s

    def _container(self, command: Sequence[str], streams: Sequence[str] = ("stdout",)) -> Container:
        container = self._pod.container(*command, streams=streams)
        for path in self._mounts:
            mount = {
                "destination": str(path),
                "type": "bind",
                "source": str(path),
                "options": ["rbind", "ro"],
            }
            container.spec["mounts"].append(mount)
        container.write_spec()
        return container


async def _first_line(container: Container) -> None:
    await container.create()
    await container.start()
    await container.stdout.until(b"\n")


@asynccontextmanager
async def starts(
    lab: Lab,
    kind: str,
    python: Path = Path(sys.executable),
    mounts: Sequence[Path] = (),
    **config: Mapping[str, Any],
) -> AsyncIterator[Starts]:
    """A sandboxer of an isolation type, configured by section, and one pod of it on the host's network."""
    name = f"{kind}{next(_serial)}"
    daemon = Daemon(lab, name, kind, python, **config)
    await daemon.start()
    events = Events(daemon)
    controller = Controller(daemon)
    pod = Pod(daemon, controller, name, pod_config(name, network=api.NODE), "")
    try:
        await pod.create()
        await pod.start()
        yield Starts(lab, pod, mounts)
        await pod.remove()
    finally:
        await controller.close()
        events.close()
        daemon.stop()
