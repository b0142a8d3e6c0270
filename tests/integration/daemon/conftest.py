"""One machine and one daemon for all tests here; whatever a test makes is gone when it ends.

A bystander pod runs all the time: after every test its container must still answer.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio

from proto.gen.runtime.v1 import api_pb2 as cri
from tests.integration.daemon.client import Container, Controller, Pod
from tests.integration.daemon.events import Events
from tests.integration.daemon.lab import Daemon, Lab
from tests.integration.daemon.specs import pod_config

HERE = Path(__file__).parent
_serial = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the coroutines here in one loop, since they share the daemon's connections; and only as root."""
    for item in items:
        if item.path.is_relative_to(HERE):
            if pytest_asyncio.is_async_test(item):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


class MakePod(Protocol):
    """Makes pods; those of a test are removed when it ends. `netns` is made unless it is given."""

    async def __call__(self, *, start: bool = True, netns: str | None = None, **config: Any) -> Pod: ...


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def daemon(lab: Lab) -> AsyncIterator[Daemon]:
    """The daemon that most tests share."""
    daemon = Daemon(lab, "shared")
    await daemon.start()
    yield daemon
    assert daemon.stop() == 0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def events(daemon: Daemon) -> AsyncIterator[Events]:
    """The engine's events service of the shared daemon."""
    events = Events(daemon)
    yield events
    events.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def controller(daemon: Daemon, events: Events) -> AsyncIterator[Controller]:
    """The engine's channel to the shared daemon."""
    controller = Controller(daemon)
    yield controller
    await controller.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bystander(daemon: Daemon, controller: Controller, events: Events) -> AsyncIterator[Container]:
    """A container that repeats what it is told, in a pod that no test touches."""
    pod = Pod(daemon, controller, "bystander", pod_config("bystander", network=cri.NODE), "")
    await pod.create()
    await pod.start()
    container = await pod.running("cat", streams=("stdin", "stdout"))
    container.write(b"ready\n")
    await container.stdout.until(b"ready\n")
    await events.until(container.id, "/tasks/start")
    yield container
    await pod.remove()


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def _nothing_is_left_or_disturbed(
    daemon: Daemon, bystander: Container, request: pytest.FixtureRequest
) -> AsyncIterator[None]:
    logged = daemon.log.stat().st_size
    before = daemon.inventory()
    yield
    # Shown when the test fails.
    print(daemon.log_since(logged)[-8000:])
    await daemon.expect_nothing_more_than(before)
    word = f"{request.node.name}\n".encode()
    bystander.stdout.data.clear()
    bystander.write(word)
    await bystander.stdout.until(word, timeout_s=20)
    assert await bystander.state() == "running"


@pytest_asyncio.fixture(loop_scope="session")
async def make_pod(
    lab: Lab,
    daemon: Daemon,
    controller: Controller,
    _nothing_is_left_or_disturbed: None,
) -> AsyncIterator[MakePod]:
    """Pods with a network of their own, or the host's."""
    async with AsyncExitStack() as stack:

        async def make(*, start: bool = True, netns: str | None = None, **config: Any) -> Pod:
            name = f"pod{next(_serial)}"
            settings = pod_config(name, **config)
            if netns is None and settings.linux.security_context.namespace_options.network == cri.POD:
                netns = stack.enter_context(lab.network(name))
            pod = Pod(daemon, controller, name, settings, netns or "")
            await pod.create()
            stack.push_async_callback(pod.remove)
            if start:
                await pod.start()
            return pod

        yield make


@pytest_asyncio.fixture(loop_scope="session")
async def pod(make_pod: MakePod) -> Pod:
    """A started pod on the host's network, the quickest there is."""
    return await make_pod(network=cri.NODE)
