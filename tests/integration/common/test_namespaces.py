"""Namespaces live without a process, and are gone without a trace when something fails."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from common.errors import InvalidArgument
from common.linux import procs
from common.linux.mounts import mounts_below
from common.linux.namespaces import Kind, create_pinned, namespace_id, owner_userns, pin, unpin
from common.linux.pod_holder import HolderRequest, HolderResult, hold_namespaces
from common.process.exits import ExitStatus, ExitWatcher
from common.process.spawn import spawn

MAPPING = ((0, 200000, 65536),)


@pytest.fixture(scope="module", autouse=True)
def subreaper() -> None:
    """The init of a PID namespace must become a child of this process."""
    procs.set_child_subreaper()


def targets(tree: Path, *kinds: Kind) -> dict[Kind, str]:
    return {kind: str(tree / kind) for kind in kinds}


def inside(pins: Mapping[Kind, str], script: str) -> str:
    options = [f"--{kind}={path}" for kind, path in pins.items()]
    return subprocess.run(
        ["nsenter", *options, "sh", "-c", script], check=True, capture_output=True, text=True
    ).stdout.strip()


def assert_nothing_left(tree: Path) -> None:
    assert mounts_below(str(tree)) == []
    assert os.listdir(tree) == []


async def end(watcher: ExitWatcher, result: HolderResult) -> ExitStatus:
    future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
    watcher.watch(result.pid, future.set_result, result.pidfd).signal(signal.SIGKILL)
    return await asyncio.wait_for(future, 5)


def test_ipc_and_uts_are_made_with_their_settings(tree: Path) -> None:
    pins = targets(tree, Kind.IPC, Kind.UTS)
    own_name = os.uname().nodename
    create_pinned(
        [Kind.IPC, Kind.UTS], pins, "pod-a", {"kernel.shmmax": "4242", "fs/mqueue/msg_max": "11"}, None
    )
    assert inside(pins, "hostname; cat /proc/sys/kernel/shmmax").split() == ["pod-a", "4242"]
    assert os.uname().nodename == own_name
    assert Path("/proc/sys/kernel/shmmax").read_text().strip() != "4242"
    assert {namespace_id(path)[1] for path in pins.values()}.isdisjoint(
        {namespace_id(f"/proc/self/ns/{kind}")[1] for kind in pins}
    )
    for path in pins.values():
        unpin(path)
        unpin(path)
    assert_nothing_left(tree)


def test_a_network_sysctl_is_written_in_the_namespace_named(tree: Path, foreign_pod: int) -> None:
    key, path = "net.ipv4.ip_unprivileged_port_start", "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    own = Path(path).read_text()
    netns = f"/proc/{foreign_pod}/ns/net"
    create_pinned([], {}, None, {key: "77"}, netns)
    assert inside({Kind.NET: netns}, f"cat {path}") == "77"
    assert Path(path).read_text() == own


@pytest.mark.parametrize(
    ("kinds", "hostname", "sysctls"),
    [
        ((Kind.IPC, Kind.UTS), None, {"kernel.shmmax": "many"}),
        ((Kind.IPC, Kind.UTS), None, {"kernel.shm_no_such": "1"}),
        ((Kind.IPC, Kind.UTS), None, {"kernel.core_pattern": "x"}),
        ((Kind.IPC, Kind.UTS), None, {"net.ipv4.ip_forward": "1"}),
        ((Kind.UTS,), None, {"kernel.sem": "1"}),
        ((Kind.IPC,), "name", {}),
        ((Kind.UTS,), "n" * 65, {}),
        ((Kind.PID,), None, {}),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_leaves_nothing(
    tree: Path, kinds: tuple[Kind, ...], hostname: str | None, sysctls: dict[str, str]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        create_pinned(kinds, targets(tree, *kinds), hostname, sysctls, None)
    assert all(repr(key) in str(caught.value) for key in sysctls)
    assert_nothing_left(tree)


def test_a_pin_that_fails_takes_the_earlier_ones_along(tree: Path) -> None:
    pins = {Kind.IPC: str(tree / "ipc"), Kind.UTS: str(tree / "no/such/uts")}
    with pytest.raises(FileNotFoundError) as caught:
        create_pinned([Kind.IPC, Kind.UTS], pins, "pod", {}, None)
    assert caught.value.filename == pins[Kind.UTS]
    assert_nothing_left(tree)


def test_a_pin_never_covers_what_exists(tree: Path) -> None:
    (tree / "file").write_text("precious")
    with pytest.raises(FileExistsError):
        pin("/proc/self/ns/uts", str(tree / "file"))
    with pytest.raises(FileNotFoundError):
        pin("/proc/self/ns/none", str(tree / "pin"))
    assert os.listdir(tree) == ["file"]


def test_the_owner_of_a_network_namespace_is_found(foreign_pod: int) -> None:
    netns = os.open(f"/proc/{foreign_pod}/ns/net", os.O_RDONLY)
    try:
        owner = owner_userns(netns)
        assert namespace_id(owner) == namespace_id(f"/proc/{foreign_pod}/ns/user")
        assert not os.get_inheritable(owner)
        os.close(owner)
    finally:
        os.close(netns)


async def test_a_shared_pid_namespace_has_an_init_that_can_and_shows_nothing(
    tree: Path, watcher: ExitWatcher
) -> None:
    pins = targets(tree, Kind.IPC, Kind.UTS, Kind.PID)
    result = await hold_namespaces(HolderRequest(pins, "pod-b", {"kernel.shmmax": "4242"}), watcher)
    proc = Path(f"/proc/{result.pid}")
    try:
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
        assert status["PPid"] == str(os.getpid())
        assert status["NSpid"].split()[1] == "1"
        assert status["Uid"].split() == status["Gid"].split() == ["65535"] * 4
        assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert status["Threads"] == "1"
        assert os.listdir(proc / "fd") == []
        assert os.listdir(proc / "root") == []
        (mount_line,) = (proc / "mountinfo").read_text().splitlines()
        assert mount_line.split()[5].startswith("ro,")
        assert (proc / "environ").read_bytes() == b""
        assert (proc / "cmdline").read_bytes() == b"sandboxd-pod-init\0"
        rollup = (proc / "smaps_rollup").read_text()
        assert int(rollup.split("Pss:")[1].split()[0]) <= 32, "KiB"
        assert namespace_id(pins[Kind.PID]) == namespace_id(f"{proc}/ns/pid")
        assert inside(pins, "hostname; cat /proc/sys/kernel/shmmax").split() == ["pod-b", "4242"]
    finally:
        assert (await end(watcher, result)).code == 137
        for path in pins.values():
            unpin(path)
    assert_nothing_left(tree)


async def test_the_init_cannot_be_inspected_under_its_own_uid(tree: Path, watcher: ExitWatcher) -> None:
    pins = targets(tree, Kind.PID)
    result = await hold_namespaces(HolderRequest(pins), watcher)
    try:
        read = subprocess.run(
            [
                "setpriv",
                "--reuid=65535",
                "--regid=65535",
                "--clear-groups",
                "cat",
                f"/proc/{result.pid}/maps",
            ],
            capture_output=True,
            text=True,
        )
        assert "Permission denied" in read.stderr
    finally:
        await end(watcher, result)
        unpin(pins[Kind.PID])


async def test_orphans_in_the_namespace_leave_no_zombies_and_end_with_the_init(
    tree: Path, watcher: ExitWatcher
) -> None:
    pins = targets(tree, Kind.PID)
    result = await hold_namespaces(HolderRequest(pins), watcher)
    inside(pins, "(sh -c 'sleep 0.01 & sleep 0.02 &' &) ; exit 0")
    member = spawn(["nsenter", f"--pid={pins[Kind.PID]}", "sleep", "60"], watcher=watcher)
    try:
        await asyncio.sleep(0.15)
        children = Path(f"/proc/{result.pid}/task/{result.pid}/children").read_text()
        assert children == ""
        assert member.status is None
    finally:
        await end(watcher, result)
        unpin(pins[Kind.PID])
    # nsenter has forked: its child dies with the namespace, and it follows by the same signal.
    assert (await asyncio.wait_for(member.wait(), 5)).code == 137


async def test_a_new_user_namespace_owns_the_others(tree: Path, watcher: ExitWatcher) -> None:
    pins = targets(tree, Kind.IPC, Kind.UTS, Kind.PID, Kind.USER)
    request = HolderRequest(
        pins, "pod-c", {"kernel.shmmax": "4242"}, uid_mappings=MAPPING, gid_mappings=MAPPING
    )
    result = await hold_namespaces(request, watcher)
    try:
        assert Path(f"/proc/{result.pid}/uid_map").read_text().split() == ["0", "200000", "65536"]
        assert os.stat(f"/proc/{result.pid}").st_uid in (0, 265535)
        for kind in (Kind.IPC, Kind.UTS, Kind.PID):
            fd = os.open(pins[kind], os.O_RDONLY)
            owner = owner_userns(fd)
            assert namespace_id(owner) == namespace_id(pins[Kind.USER])
            os.close(owner)
            os.close(fd)
        assert inside(pins, "hostname; cat /proc/sys/kernel/shmmax").split() == ["pod-c", "4242"]
    finally:
        assert (await end(watcher, result)).code == 137
        for path in pins.values():
            unpin(path)
    assert_nothing_left(tree)


async def test_a_mapping_without_65535_gives_the_init_the_root_of_the_namespace_without_power(
    tree: Path, watcher: ExitWatcher
) -> None:
    pins = targets(tree, Kind.PID, Kind.USER)
    small = ((0, 200000, 10),)
    result = await hold_namespaces(HolderRequest(pins, uid_mappings=small, gid_mappings=small), watcher)
    status = Path(f"/proc/{result.pid}/status").read_text()
    await end(watcher, result)
    for path in pins.values():
        unpin(path)
    assert status.split("Uid:")[1].split()[0] == "200000"
    assert status.split("CapEff:")[1].split()[0] == "0" * 16


async def test_the_user_namespace_of_the_network_is_joined(
    tree: Path, watcher: ExitWatcher, foreign_pod: int, userns_fd: int
) -> None:
    pins = targets(tree, Kind.IPC, Kind.UTS, Kind.USER)
    netns = f"/proc/{foreign_pod}/ns/net"
    sysctls = {"kernel.msgmax": "5000", "net.ipv4.ip_unprivileged_port_start": "55"}
    request = HolderRequest(pins, "pod-d", sysctls, netns_path=netns, userns_fd=userns_fd)
    assert await hold_namespaces(request, watcher) == HolderResult(0, -1)
    assert namespace_id(pins[Kind.USER]) == namespace_id(userns_fd)
    script = "hostname; cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start"
    assert inside({**pins, Kind.NET: netns}, script).split() == ["pod-d", "5000", "55"]
    for path in pins.values():
        unpin(path)
    assert_nothing_left(tree)


@pytest.mark.parametrize(
    "changes",
    [
        {"sysctls": {"kernel.shmmax": "many"}},
        {"sysctls": {"vm.swappiness": "1"}},
        {"hostname": "n" * 65},
        {"uid_mappings": MAPPING},
        {"uid_mappings": ((5, 5, 0),), "gid_mappings": ((5, 5, 0),)},
        {"userns_fd": 0, "uid_mappings": MAPPING, "gid_mappings": MAPPING},
    ],
)
async def test_what_the_holder_cannot_do_leaves_nothing(
    tree: Path, watcher: ExitWatcher, changes: dict[str, object]
) -> None:
    pins = targets(tree, Kind.IPC, Kind.UTS, Kind.PID)
    with pytest.raises(InvalidArgument):
        await hold_namespaces(HolderRequest(pins, **changes), watcher)  # type: ignore[arg-type]
    assert_nothing_left(tree)
    assert watcher.watch_count == 0


async def test_a_pin_that_fails_takes_the_init_along(tree: Path, watcher: ExitWatcher) -> None:
    pins = {Kind.IPC: str(tree / "ipc"), Kind.PID: str(tree / "no/such/pid")}
    with pytest.raises(FileNotFoundError):
        await hold_namespaces(HolderRequest(pins), watcher)
    await asyncio.sleep(0.2)
    assert_nothing_left(tree)


async def test_a_caller_that_goes_away_leaves_nothing_at_any_moment(tree: Path, watcher: ExitWatcher) -> None:
    pins = targets(tree, Kind.IPC, Kind.UTS, Kind.PID)
    for delay_ms in range(0, 40, 3):
        task = asyncio.ensure_future(hold_namespaces(HolderRequest(pins), watcher))
        await asyncio.sleep(delay_ms / 1000)
        task.cancel()
        try:
            result = await task
        except asyncio.CancelledError:
            assert_nothing_left(tree)
        else:
            await end(watcher, result)
            for path in pins.values():
                unpin(path)
    await asyncio.sleep(0.3)
    assert watcher.watch_count == 0


async def test_many_pods_can_be_made_at_once(tree: Path, watcher: ExitWatcher) -> None:
    pods = [{Kind.PID: str(tree / f"pid{number}")} for number in range(8)]
    results = await asyncio.gather(*(hold_namespaces(HolderRequest(pins), watcher) for pins in pods))
    assert len({namespace_id(pins[Kind.PID]) for pins in pods}) == 8
    statuses = await asyncio.gather(*(end(watcher, result) for result in results))
    for pins in pods:
        unpin(pins[Kind.PID])
    assert {status.code for status in statuses} == {137}
