"""iSulad as the engine of pods in virtual machines, to which it gives a network after they have started."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from common.failpoints import VARIABLE, Failpoint
from common.ttrpc import ConnectionLost
from tests.contract.isulad import IsuladContract
from tests.engine.handlers import ShellScripts
from tests.integration.daemon.isulad import Container, Isulad, Sandbox, engine_of, pod_of
from tests.integration.daemon.lab import Daemon, Lab
from tests.vm.machines import new_daemon

GATEWAY, ADDRESS = "10.99.0.1", "10.99.0.2"
SLEEP = ("sleep", "1000")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("grpc_library"),
    pytest.mark.timeout(300),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def isulad(lab: Lab) -> AsyncIterator[Isulad]:
    async with engine_of(new_daemon(lab, "isulad", kind="isulad")) as isulad:
        yield isulad


@pytest_asyncio.fixture(loop_scope="module")
async def sandbox(isulad: Isulad) -> AsyncIterator[Sandbox]:
    async with pod_of(isulad) as sandbox:
        yield sandbox


def add_network(sandbox: Sandbox) -> None:
    """Do what the engine's CNI plugins do: a veth with an address, a route, and its other end on the node."""
    name = sandbox.netns_path.rpartition("/")[2]
    script = f"""
        ip -n {name} link add eth0 type veth peer name node0 netns 1
        ip -n {name} address add {ADDRESS}/24 dev eth0
        ip -n {name} link set eth0 up
        ip -n {name} route add default via {GATEWAY}
        ip address add {GATEWAY}/24 dev node0
        ip link set node0 up
    """
    sandbox.lab.run("sh", "-ec", script)


async def expect_network(container: Container) -> None:
    """Fail unless the container has the address, and is reached at it from the node and reaches it."""
    code, output, _ = await container.exec_sync("ip", "address", "show", "eth0")
    assert (code, f"inet {ADDRESS}/24" in output.decode()) == (0, True), output
    assert (await container.exec_sync("ping", "-c", "1", "-W", "5", GATEWAY))[0] == 0
    container.lab.run("busybox", "ping", "-c", "1", "-W", "5", ADDRESS)


class TestQemu(IsuladContract):
    """Machines, emulated."""

    programs = ShellScripts()
    execs = 10


@pytest.mark.parametrize("order", ["after Start", "before Start"])
async def test_a_pod_has_the_network_that_its_engine_gave_it(isulad: Isulad, order: str) -> None:
    set_up = {"set_up_network": add_network} if order == "before Start" else {}
    async with pod_of(isulad, **set_up) as sandbox:
        if order == "after Start":
            add_network(sandbox)
        container = await sandbox.running(*SLEEP)
        await expect_network(container)
        # What later containers find needs nothing more.
        await expect_network(await sandbox.running(*SLEEP))


class MortalDaemon(Daemon):
    """One that starts with armed failpoints."""

    failpoints = ""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, VARIABLE: self.failpoints}


@pytest.mark.parametrize(
    ("point", "passes"),
    [
        # Passed by two starts already, or by the sandboxer's first container, which find no interface.
        (Failpoint.SANDBOX_NETWORK_ATTACHED, 3),
        (Failpoint.SANDBOX_NETWORK_PLUGGED, 2),
        (Failpoint.SANDBOX_NETWORK_JOINED, 2),
    ],
    ids=str,
)
async def test_what_a_daemon_leaves_that_dies_while_the_network_comes_is_made_whole(
    lab: Lab, point: Failpoint, passes: int
) -> None:
    daemon = new_daemon(lab, f"mortal-{point}", MortalDaemon, kind="isulad")
    assert isinstance(daemon, MortalDaemon)
    daemon.failpoints = f"{point}=kill@{passes}"
    async with engine_of(daemon) as isulad, pod_of(isulad) as sandbox:
        add_network(sandbox)
        container = Container(sandbox, *SLEEP)
        with pytest.raises(ConnectionLost):
            await container.create()
        daemon.stop(signal.SIGKILL)
        daemon.failpoints = ""
        await daemon.start()
        await isulad.until_platform(sandbox.id)
        await container.purge()
        await expect_network(await sandbox.running(*SLEEP))
