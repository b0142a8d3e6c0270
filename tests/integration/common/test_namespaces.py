"""Namespaces live without a process, and are gone without a trace when something fails.

That a test leaves no descriptor, child or mount behind is looked at after each (`tests/conftest.py`).
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.errors import Internal, InvalidArgument, SandboxdError
from common.linux.namespaces import Kind, close_all, create, namespace_id, open_all, owner_userns, path_of
from common.linux.pod_holder import HolderRequest, HolderResult, hold_namespaces
from common.process.exits import ExitStatus, ExitWatcher
from common.process.spawn import CAPTURE, run, spawn
from tests.children import children_named, children_of
from tests.engine.namespaces import wait_until
from tests.integration.daemon.lab import until

MAPPING = ((0, 200000, 65536),)
CHECKOUT = Path(__file__).resolve().parents[3]

# A daemon that makes a PID namespace, tells the pid of its init, and is killed: while it confirms, or after.
MORTAL_DAEMON = """
import asyncio, os, signal, sys

sys.path.insert(0, sys.argv[1])
from common.linux import procs
from common.linux.namespaces import Kind
from common.linux.pod_holder import HolderRequest, hold_namespaces
from common.process.exits import ExitWatcher

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def on_held(held):
    os.write(1, str(held.pid).encode())
    if sys.argv[2] == "unconfirmed":
        die()

async def main():
    await hold_namespaces(HolderRequest([Kind.PID]), ExitWatcher(), on_held)
    die()

procs.set_child_subreaper()
asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def _subreaper(subreaper: None) -> None:
    """The init of a PID namespace must become a child of this process."""


async def hold(watcher: ExitWatcher, request: HolderRequest) -> HolderResult:
    """Hold namespaces of which nobody takes note."""
    return await hold_namespaces(request, watcher, lambda _: None)


async def end(watcher: ExitWatcher, result: HolderResult) -> ExitStatus:
    """Let go of what is held, and kill the init."""
    close_all(result.namespaces)
    future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
    watcher.watch(result.pid, future.set_result, result.pidfd).signal(signal.SIGKILL)
    return await asyncio.wait_for(future, 20)


def inside(namespaces: Mapping[Kind, int | str], script: str) -> str:
    """Run a script in namespaces, by the paths that a runtime would join; its output."""
    options = [
        f"--{kind}={path_of(place) if isinstance(place, int) else place}"
        for kind, place in namespaces.items()
    ]
    return subprocess.run(
        ["nsenter", *options, "sh", "-c", script], check=True, capture_output=True, text=True
    ).stdout.strip()


async def gone(pid: int) -> None:
    """Wait until there is no such process, not even a zombie."""
    async with asyncio.timeout(20):
        while os.path.exists(f"/proc/{pid}"):  # noqa: ASYNC110 - nothing tells the end of a stranger's child
            await asyncio.sleep(0.005)


@contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """Let this process open only so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}
    free = [fd for fd in range(max(used) + descriptors + 2) if fd not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[descriptors], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ipc_and_uts_are_made_with_their_settings() -> None:
    own_name = os.uname().nodename
    held = create([Kind.IPC, Kind.UTS], "pod-a", {"kernel.shmmax": "4242", "fs/mqueue/msg_max": "11"}, None)
    try:
        assert held.keys() == {Kind.IPC, Kind.UTS}
        assert inside(held, "hostname; cat /proc/sys/kernel/shmmax").split() == ["pod-a", "4242"]
        assert os.uname().nodename == own_name
        assert Path("/proc/sys/kernel/shmmax").read_text().strip() != "4242"
        assert {namespace_id(fd) for fd in held.values()}.isdisjoint(
            {namespace_id(f"/proc/self/ns/{kind}") for kind in held}
        )
        assert {namespace_id(path_of(fd)) for fd in held.values()} == {
            namespace_id(fd) for fd in held.values()
        }
    finally:
        close_all(held)
    assert held == {}
    close_all(held)


def test_nothing_is_mounted_for_a_namespace() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    held = create([Kind.IPC, Kind.UTS], "pod", {}, None)
    after = Path("/proc/self/mountinfo").read_text()
    close_all(held)
    assert after == before


def test_descriptors_of_namespaces_are_not_inherited() -> None:
    held = create([Kind.IPC, Kind.UTS], None, {}, None)
    opened = open_all({Kind.NET: "/proc/self/ns/net", Kind.PID: "/proc/self/ns/pid"})
    inheritable = [fd for fd in (*held.values(), *opened.values()) if os.get_inheritable(fd)]
    close_all(held)
    close_all(opened)
    assert inheritable == []


def test_a_network_sysctl_is_written_in_the_namespace_named(foreign_pod: int) -> None:
    key, path = "net.ipv4.ip_unprivileged_port_start", "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    own = Path(path).read_text()
    netns = f"/proc/{foreign_pod}/ns/net"
    assert create([], None, {key: "77"}, netns) == {}
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
    kinds: tuple[Kind, ...], hostname: str | None, sysctls: dict[str, str]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        create(kinds, hostname, sysctls, None)
    assert all(repr(key) in str(caught.value) for key in sysctls)


def test_a_network_namespace_that_is_gone_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        create([Kind.IPC, Kind.UTS], "pod", {"net.ipv4.ip_forward": "1"}, "/proc/self/ns/none")
    assert caught.value.filename == "/proc/self/ns/none"


def test_a_file_that_cannot_be_opened_takes_the_earlier_ones_along() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_all({Kind.IPC: "/proc/self/ns/ipc", Kind.UTS: "/proc/self/ns/none"})
    assert caught.value.filename == "/proc/self/ns/none"


def test_too_few_descriptors_leave_nothing() -> None:
    made = []
    for descriptors in range(4):
        with room_for(descriptors):
            try:
                held = create([Kind.IPC, Kind.UTS], "pod", {}, None)
            except OSError:
                continue
        made.append(descriptors)
        close_all(held)
    assert made == [2, 3]


def test_the_owner_of_a_network_namespace_is_found(foreign_pod: int) -> None:
    netns = os.open(f"/proc/{foreign_pod}/ns/net", os.O_RDONLY)
    try:
        owner = owner_userns(netns)
        assert namespace_id(owner) == namespace_id(f"/proc/{foreign_pod}/ns/user")
        assert not os.get_inheritable(owner)
        os.close(owner)
    finally:
        os.close(netns)


async def test_a_shared_pid_namespace_has_an_init_that_can_and_shows_nothing(watcher: ExitWatcher) -> None:
    request = HolderRequest([Kind.IPC, Kind.UTS, Kind.PID], "pod-b", {"kernel.shmmax": "4242"})
    result = await hold(watcher, request)
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
        for kind, fd in result.namespaces.items():
            assert namespace_id(fd) == namespace_id(f"{proc}/ns/{kind}")
            assert namespace_id(fd) != namespace_id(f"/proc/self/ns/{kind}")
        assert inside(result.namespaces, "hostname; cat /proc/sys/kernel/shmmax").split() == ["pod-b", "4242"]
    finally:
        assert (await end(watcher, result)).code == 137


async def test_what_the_holder_returns_is_not_inherited(watcher: ExitWatcher) -> None:
    result = await hold(watcher, HolderRequest([Kind.IPC, Kind.UTS, Kind.PID]))
    inheritable = [fd for fd in (*result.namespaces.values(), result.pidfd) if os.get_inheritable(fd)]
    await end(watcher, result)
    assert inheritable == []


async def test_the_init_cannot_be_inspected_under_its_own_uid(watcher: ExitWatcher) -> None:
    result = await hold(watcher, HolderRequest([Kind.PID]))
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


async def test_orphans_in_the_namespace_leave_no_zombies_and_end_with_the_init(watcher: ExitWatcher) -> None:
    result = await hold(watcher, HolderRequest([Kind.PID]))
    inside(result.namespaces, "(sh -c 'sleep 0.01 & sleep 0.02 &' &) ; exit 0")
    member = spawn(
        ["nsenter", f"--pid={path_of(result.namespaces[Kind.PID])}", "sleep", "60"], watcher=watcher
    )
    try:
        await until(lambda: not children_of(result.pid), 20, "the end of the orphans")
        await until(lambda: children_of(member.pid), 20, "nsenter to fork")
        assert member.status is None
    finally:
        await end(watcher, result)
    # nsenter has forked: its child dies with the namespace, and it follows by the same signal.
    assert (await asyncio.wait_for(member.wait(), 20)).code == 137


async def test_a_new_user_namespace_owns_the_others(watcher: ExitWatcher) -> None:
    request = HolderRequest(
        [Kind.IPC, Kind.UTS, Kind.PID, Kind.USER],
        "pod-c",
        {"kernel.shmmax": "4242"},
        uid_mappings=MAPPING,
        gid_mappings=MAPPING,
    )
    result = await hold(watcher, request)
    held = result.namespaces
    try:
        assert Path(f"/proc/{result.pid}/uid_map").read_text().split() == ["0", "200000", "65536"]
        assert os.stat(f"/proc/{result.pid}").st_uid in (0, 265535)
        for kind in (Kind.IPC, Kind.UTS, Kind.PID):
            owner = owner_userns(held[kind])
            assert namespace_id(owner) == namespace_id(held[Kind.USER])
            os.close(owner)
        assert inside(held, "hostname; cat /proc/sys/kernel/shmmax").split() == ["pod-c", "4242"]
    finally:
        assert (await end(watcher, result)).code == 137


async def test_a_mapping_without_65535_gives_the_init_the_root_of_the_namespace_without_power(
    watcher: ExitWatcher,
) -> None:
    small = ((0, 200000, 10),)
    result = await hold(watcher, HolderRequest([Kind.PID, Kind.USER], uid_mappings=small, gid_mappings=small))
    status = Path(f"/proc/{result.pid}/status").read_text()
    await end(watcher, result)
    assert status.split("Uid:")[1].split()[0] == "200000"
    assert status.split("CapEff:")[1].split()[0] == "0" * 16


async def test_the_user_namespace_of_the_network_is_joined(
    watcher: ExitWatcher, foreign_pod: int, userns_fd: int
) -> None:
    netns = f"/proc/{foreign_pod}/ns/net"
    sysctls = {"kernel.msgmax": "5000", "net.ipv4.ip_unprivileged_port_start": "55"}
    request = HolderRequest(
        [Kind.IPC, Kind.UTS, Kind.USER], "pod-d", sysctls, netns_path=netns, userns_fd=userns_fd
    )
    result = await hold(watcher, request)
    try:
        assert (result.pid, result.pidfd) == (0, -1)
        assert namespace_id(result.namespaces[Kind.USER]) == namespace_id(userns_fd)
        script = "hostname; cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start"
        assert inside({**result.namespaces, Kind.NET: netns}, script).split() == ["pod-d", "5000", "55"]
    finally:
        close_all(result.namespaces)


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
    watcher: ExitWatcher, changes: dict[str, object]
) -> None:
    request = HolderRequest([Kind.IPC, Kind.UTS, Kind.PID], **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        await hold(watcher, request)
    assert watcher.watch_count == 0


async def test_what_is_held_is_told_before_it_is_for_good(watcher: ExitWatcher) -> None:
    told: list[tuple[int, bool, dict[Kind, tuple[int, int]]]] = []

    def note(held: HolderResult) -> None:
        told.append((held.pid, _is_alive(held.pid), _ids(held)))

    result = await hold_namespaces(HolderRequest([Kind.IPC, Kind.PID]), watcher, note)
    ids = _ids(result)
    await end(watcher, result)
    assert told == [(result.pid, True, ids)]


@pytest.mark.parametrize("kinds", [(Kind.IPC, Kind.UTS, Kind.PID), (Kind.IPC, Kind.PID, Kind.USER)])
async def test_an_init_dies_if_no_note_can_be_taken_of_it(
    watcher: ExitWatcher, kinds: tuple[Kind, ...]
) -> None:
    told: list[HolderResult] = []

    def fail(held: HolderResult) -> None:
        assert _is_alive(held.pid)
        told.append(held)
        raise OSError(28, "No space left on device", "/run/namespaces.json")

    maps = MAPPING if Kind.USER in kinds else ()
    with pytest.raises(OSError, match="No space left on device"):
        await hold_namespaces(HolderRequest(kinds, uid_mappings=maps, gid_mappings=maps), watcher, fail)
    (held,) = told
    assert held.namespaces == {}
    await gone(held.pid)
    assert watcher.watch_count == 0


@pytest.mark.parametrize("died", ["unconfirmed", "confirmed"])
async def test_an_init_outlives_its_daemon_only_if_it_was_confirmed(watcher: ExitWatcher, died: str) -> None:
    argv = [sys.executable, "-c", MORTAL_DAEMON, str(CHECKOUT), died]
    daemon = await run(argv, watcher=watcher, stdout=CAPTURE, timeout_s=20)
    assert daemon.status.code == 137
    init = int(daemon.stdout)
    if died == "confirmed":
        # The helper is told and ends; nobody but the dead daemon has ever been its parent.
        await asyncio.sleep(0.3)
        assert _is_alive(init)
        await end(watcher, HolderResult({}, init, os.pidfd_open(init)))
    await gone(init)


async def test_a_caller_that_goes_away_leaves_nothing_at_any_moment(watcher: ExitWatcher) -> None:
    for delay_ms in range(0, 40, 3):
        task = asyncio.ensure_future(hold(watcher, HolderRequest([Kind.IPC, Kind.UTS, Kind.PID])))
        await asyncio.sleep(delay_ms / 1000)
        task.cancel()
        try:
            result = await task
        except asyncio.CancelledError:
            continue
        await end(watcher, result)
    await until(lambda: not watcher.watch_count, 20, "the end of what was begun")


async def test_an_init_that_nobody_has_confirmed_dies_with_its_helper(watcher: ExitWatcher) -> None:
    holding = asyncio.ensure_future(hold(watcher, HolderRequest([Kind.PID])))
    await asyncio.sleep(0)
    # It has begun. From here on not with the event loop's help: nobody shall confirm it.
    wait_until(lambda: children_named(b"_holder_main"), 20, "the helper")
    (helper,) = children_named(b"_holder_main")
    wait_until(lambda: children_of(helper), 20, "its init")
    (init,) = children_of(helper)
    os.kill(helper, signal.SIGKILL)
    # Whether it had said that it is done or not.
    with pytest.raises((Internal, OSError)):
        await holding
    await gone(init)
    assert watcher.watch_count == 0


def test_an_init_whose_helper_is_gone_runs_nothing_of_its_code() -> None:
    helper = """
import os, sys

sys.path.insert(0, sys.argv[1])
from common.linux import _holder_main

reports, report_fd = os.pipe()
os.close(reports)
try:
    _holder_main._become_init(os.memfd_create("init"), report_fd, os.pipe()[0])
finally:
    os._exit(7)
"""
    init = subprocess.run([sys.executable, "-c", helper, str(CHECKOUT)], timeout=20)
    assert init.returncode == 1


async def test_too_few_descriptors_for_the_holder_leave_nothing(watcher: ExitWatcher) -> None:
    made = []
    for descriptors in range(12):
        with room_for(descriptors):
            try:
                result = await hold(watcher, HolderRequest([Kind.IPC, Kind.UTS, Kind.PID]))
            except (OSError, SandboxdError):
                continue
        made.append(descriptors)
        await end(watcher, result)
    assert made
    assert made[0] > 0
    assert watcher.watch_count == 0


async def test_many_pods_can_be_made_at_once(watcher: ExitWatcher) -> None:
    results = await asyncio.gather(*(hold(watcher, HolderRequest([Kind.PID])) for _ in range(8)))
    ids = {namespace_id(result.namespaces[Kind.PID]) for result in results}
    statuses = await asyncio.gather(*(end(watcher, result) for result in results))
    assert len(ids) == 8
    assert {status.code for status in statuses} == {137}


def _is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def _ids(held: HolderResult) -> dict[Kind, tuple[int, int]]:
    return {kind: namespace_id(fd) for kind, fd in held.namespaces.items()}
