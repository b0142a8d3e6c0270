"""Start and Create that fail at each of their steps, for real causes: afterwards nothing is left.

That nothing is left is checked after every test (conftest.py); here the state right after the failure is too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from common.errors import Code
from proto.gen.runtime.v1 import api_pb2 as cri
from tests.integration.daemon.client import Container, Controller, Pod, refused
from tests.integration.daemon.conftest import MakePod
from tests.integration.daemon.lab import BINARY, CGROUP_PARENT, Daemon, Lab

USERNS = (100_000, 65536)


def _occupy(name: str) -> Callable[[Pod], None]:
    def occupy(pod: Pod) -> None:
        pod.file(name).mkdir()
        (pod.file(name) / "occupied").touch()

    return occupy


@asynccontextmanager
async def _nothing_remains(pod: Pod) -> AsyncIterator[None]:
    """Whatever fails inside: the pod is forgotten, and at once nothing of it exists but what was there before."""
    daemon = pod.daemon
    before = daemon.inventory()
    yield
    await daemon.expect_nothing_more_than(before)
    assert not daemon.lab.path(pod.directory).exists()
    with refused(Code.NOT_FOUND, pod.id):
        await pod.controller("Status", pod.id)


# -- the pod ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"pid": cri.POD},
        {"network": cri.NODE, "user_namespace": USERNS, "pid": cri.POD},
    ],
    ids=["plain", "shared PID namespace", "user namespace"],
)
@pytest.mark.parametrize("step", ["namespaces.json.new", "etc", "shm", "task.sock", "sandbox.json.new"])
async def test_a_step_finds_its_place_taken(make_pod: MakePod, step: str, kinds: dict[str, Any]) -> None:
    pod = await make_pod(start=False, **kinds)
    async with _nothing_remains(pod):
        _occupy(step)(pod)
        with refused(Code.INTERNAL, step):
            await pod.start()


@pytest.mark.parametrize("kinds", [{}, {"pid": cri.POD}], ids=["plain", "shared PID namespace"])
@pytest.mark.parametrize(
    ("sysctls", "said"),
    [
        ({"vm.swappiness": "1"}, "vm.swappiness"),
        ({"kernel.nonsense": "1"}, "kernel.nonsense"),
        ({"net.ipv4.nonsense": "1"}, "net.ipv4.nonsense"),
        ({"net.ipv4.ip_unprivileged_port_start": "nonsense"}, "ip_unprivileged_port_start"),
        ({"kernel.shm_rmid_forced": "7"}, "kernel.shm_rmid_forced"),
        ({"net/../vm/swappiness": "1"}, "swappiness"),
    ],
)
async def test_a_bad_sysctl_is_refused_by_name(
    make_pod: MakePod, sysctls: dict[str, str], said: str, kinds: dict[str, Any]
) -> None:
    pod = await make_pod(start=False, sysctls=sysctls, **kinds)
    async with _nothing_remains(pod):
        with refused(Code.INVALID_ARGUMENT, said):
            await pod.start()


async def test_a_sysctl_of_the_hosts_network_is_refused(make_pod: MakePod) -> None:
    pod = await make_pod(start=False, network=cri.NODE, sysctls={"net.ipv4.ip_forward": "1"})
    async with _nothing_remains(pod):
        with refused(Code.INVALID_ARGUMENT, "net.ipv4.ip_forward"):
            await pod.start()


@pytest.mark.parametrize(
    "kinds",
    [{}, {"pid": cri.POD}, {"user_namespace": USERNS}],
    ids=["plain", "shared PID namespace", "user namespace"],
)
@pytest.mark.parametrize("path", ["/run/netns/nowhere", "/run/lab/image/etc/passwd", "/run/lab"])
async def test_a_network_namespace_that_is_none_is_refused(
    make_pod: MakePod, path: str, kinds: dict[str, Any]
) -> None:
    pod = await make_pod(start=False, netns=path, **kinds)
    async with _nothing_remains(pod):
        with refused(Code.INVALID_ARGUMENT if "nowhere" not in path else Code.NOT_FOUND, path):
            await pod.start()


@pytest.mark.parametrize(
    "mapping", [(100_000, 0), (0xFFFFFFFF, 10)], ids=["an empty mapping", "ids that do not exist"]
)
async def test_a_user_namespace_that_cannot_be_is_refused(
    make_pod: MakePod, mapping: tuple[int, int]
) -> None:
    with refused(Code.INVALID_ARGUMENT, "map"):
        await make_pod(network=cri.NODE, user_namespace=mapping)


async def test_the_last_record_cannot_be_written(make_pod: MakePod, lab: Lab) -> None:
    pod = await make_pod(start=False, pid=cri.POD)
    # The daemon copies /etc/hosts: while that is a FIFO it is held at this step.
    gate = lab.path("/run/lab/gate")
    os.mkfifo(gate)
    lab.run("mount", "--bind", "/run/lab/gate", "/etc/hosts")
    try:
        async with _nothing_remains(pod):
            starting = asyncio.create_task(pod.start())
            writer = await asyncio.to_thread(os.open, gate, os.O_WRONLY)
            _occupy("sandbox.json.new")(pod)
            os.close(writer)
            with refused(Code.INTERNAL, "sandbox.json.new"):
                await starting
            lab.run("umount", "/etc/hosts")
    finally:
        gate.unlink()


async def test_no_room_for_a_pod_is_an_error_and_not_a_leak(
    daemon: Daemon, lab: Lab, make_pod: MakePod, controller: Controller
) -> None:
    pod = await make_pod(start=False, network=cri.NODE)
    filler = lab.path(f"{daemon.state_dir}/.filler")
    try:
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(1 << 20))
        with refused(Code.RESOURCE_EXHAUSTED, "No space", "full"):
            await controller("Create", "full")
        async with _nothing_remains(pod):
            with refused(Code.RESOURCE_EXHAUSTED, "No space"):
                await pod.start()
    finally:
        filler.unlink()
    await pod.create()
    await pod.start()
    container = await pod.running()
    other = pod.container()
    try:
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(1 << 20))
        with refused(Code.RESOURCE_EXHAUSTED, "No space"):
            await other.create()
        assert await container.state() == "running"
    finally:
        filler.unlink()


async def test_a_failed_start_can_be_repeated_after_the_cause_is_gone(make_pod: MakePod) -> None:
    pod = await make_pod(start=False, network=cri.NODE)
    _occupy("etc")(pod)
    with refused(Code.INTERNAL, "etc"):
        await pod.start()
    await pod.create()
    await pod.start()
    assert await pod.run("echo", "well") == (0, "well\n")


# -- the container ---------------------------------------------------------------------------------


@asynccontextmanager
async def _no_container_remains(container: Container) -> AsyncIterator[None]:
    """Whatever fails inside: the container is forgotten, and nothing of it exists but the engine's bundle."""
    daemon = container.pod.daemon
    # Of the pod, and made with its first container.
    container.pod.file("tasks").mkdir(mode=0o700, exist_ok=True)
    before = daemon.inventory()
    yield
    await daemon.expect_nothing_more_than(before)
    with refused(Code.NOT_FOUND, container.id):
        await container.state()
    assert not daemon.lab.is_mounted(f"{container.bundle}/rootfs")
    # And it can be made once the cause is gone.
    await container.create()
    assert (await container.run())[0] == 0


async def test_the_directory_of_the_containers_is_no_directory(pod: Pod) -> None:
    container = pod.container()
    async with _no_container_remains(container):
        pod.file("tasks").rmdir()
        pod.file("tasks").touch()
        with refused(Code.INTERNAL, "tasks"):
            await container.create()
        pod.file("tasks").unlink()


async def test_the_directory_of_the_container_exists(pod: Pod) -> None:
    container = pod.container()
    kept = pod.file(f"tasks/{container.id}")
    async with _no_container_remains(container):
        kept.mkdir(parents=True)
        (kept / "precious").touch()
        with refused(Code.ALREADY_EXISTS, container.id, "behind"):
            await container.create()
        assert (kept / "precious").exists(), "it may be somebody's"
        (kept / "precious").unlink()
        kept.rmdir()


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("exit 3", Code.INTERNAL, "exit code 3"),
        ("kill -9 $$", Code.INTERNAL, "137"),
        ("echo nonsense >\"$4\"; exit 1", Code.INTERNAL, "nonsense"),
        ("echo '{\"level\":\"error\",\"msg\":\"it hurts\"}' >\"$4\"; exit 1", Code.INTERNAL, "it hurts"),
        ("exit 0", Code.INTERNAL, "pid"),
        ("crun \"$@\" && exit 1", Code.INTERNAL, "exit code 1"),
        ("crun \"$@\"; echo nonsense >$(dirname \"$4\")/init.pid; exit 0", Code.INTERNAL, "pid"),
        ("crun \"$@\"; echo 4000000 >$(dirname \"$4\")/init.pid; exit 0", Code.NOT_FOUND, "4000000"),
        ("crun \"$@\"; mkdir $(dirname \"$4\")/container.json.new; exit 0", Code.INTERNAL, "container.json.new"),
        ("rm \"$(dirname \"$4\")/config.json\"", Code.INTERNAL, "config.json"),
    ],
    ids=["fails", "is killed", "logs nonsense", "logs JSON", "does nothing", "fails at the end",
         "writes no pid", "writes a wrong pid", "is followed by a full disk", "finds no bundle"],
)  # fmt: skip
async def test_the_runtime_cannot_create(pod: Pod, lab: Lab, script: str, code: Code, said: str) -> None:
    container = pod.container()
    async with _no_container_remains(container):
        with lab.sabotage(container.id, "create", script), refused(code, said):
            await container.create()


HALF_WAY = """
sh -c '
for parent in /sys/fs/cgroup{parent} /sys/fs/cgroup/*{parent}; do
    [ -d $parent ] && mkdir $parent/{id} && echo $$ > $parent/{id}/cgroup.procs
done
exec sleep 1000' &
sleep 0.3
kill -9 $$
"""


async def test_the_runtime_is_killed_half_way(pod: Pod, lab: Lab) -> None:
    container = pod.container()
    script = HALF_WAY.format(parent=CGROUP_PARENT, id=container.id)
    async with _no_container_remains(container):
        with lab.sabotage(container.id, "create", script), refused(Code.INTERNAL, "137"):
            await container.create()


async def test_the_runtime_is_not_there(pod: Pod, lab: Lab) -> None:
    container = pod.container()
    runtime = lab.path(BINARY)
    async with _no_container_remains(container):
        runtime.rename(f"{runtime}.away")
        with refused(Code.NOT_FOUND, BINARY, "installed"):
            await container.create()
        Path(f"{runtime}.away").rename(runtime)


async def test_the_runtime_may_not_be_executed(pod: Pod, lab: Lab) -> None:
    container = pod.container()
    runtime = lab.path(BINARY)
    async with _no_container_remains(container):
        runtime.chmod(0o644)
        with refused(Code.PERMISSION_DENIED, BINARY):
            await container.create()
        runtime.chmod(0o755)


async def test_a_mount_of_the_container_cannot_be_made(pod: Pod) -> None:
    container = pod.container()
    async with _no_container_remains(container):
        container.spec["mounts"].append(
            {"destination": "/data", "type": "bind", "source": "/run/lab/nowhere", "options": ["rbind"]}
        )
        container.write_spec()
        with refused(Code.INVALID_ARGUMENT, container.id):
            await container.create()
        container.spec["mounts"].pop()
        container.write_spec()


async def test_start_fails_and_the_container_can_be_deleted(pod: Pod, lab: Lab) -> None:
    container = pod.container()
    await container.create()
    with lab.sabotage(container.id, "start", "exit 5"), refused(Code.INTERNAL, container.id, "5"):
        await container.start()
    assert await container.state() == "created"
    await container.delete()


async def test_exec_fails_and_can_be_deleted(pod: Pod, lab: Lab) -> None:
    container = await pod.running()
    process = await container.exec("true")
    with lab.sabotage(container.id, "exec", "exit 5"), refused(Code.INTERNAL, container.id, "5"):
        await process.start()
    assert await process.state() == "created"
    await process.delete()
    assert await container.run_exec("echo", "well") == (0, "well\n")


async def test_delete_fails_and_can_be_repeated(pod: Pod, lab: Lab) -> None:
    container = await pod.running("true")
    await container.wait()
    with lab.sabotage(container.id, "delete", "exit 5"), refused(Code.INTERNAL, container.id, "5"):
        await container.delete()
    assert await container.state() == "stopped"
    assert (await container.delete()).exit_status == 0


@pytest.mark.parametrize("command", ["pause", "update"])
async def test_a_failure_of_another_command_changes_nothing(pod: Pod, lab: Lab, command: str) -> None:
    container = await pod.running()
    fields: dict[str, Any] = {"resources": {"value": b"{}"}} if command == "update" else {}
    with lab.sabotage(container.id, command, "exit 5"), refused(Code.INTERNAL, container.id, "5"):
        await pod.task(command.capitalize(), id=container.id, **fields)
    assert await container.state() == "running"


async def test_a_systemd_cgroup_path_is_handed_to_the_runtime_as_such(pod: Pod, lab: Lab) -> None:
    container = pod.container(
        changes={"cgroupsPath": f"kubepods-besteffort.slice:cri-containerd:{pod.id}-c1"}
    )
    seen = len(lab.runtime_calls())
    with lab.sabotage(container.id, "create", "exit 5"), refused(Code.INTERNAL, "5"):
        await container.create()
    (call,) = [call for call in lab.runtime_calls()[seen:] if " create " in call]
    assert "--systemd-cgroup create" in call
    plain = pod.container()
    await plain.create()
    assert "--systemd-cgroup" not in lab.runtime_calls()[-1]
