"""What the containers of a pod share, with each other and with the host, and what they do not."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import Code
from proto.gen.cgroups.v1.metrics_pb2 import Metrics as MetricsV1
from proto.gen.runtime.v1 import api_pb2 as cri
from tests.integration.daemon.client import Pod, refused
from tests.integration.daemon.conftest import MakePod
from tests.integration.daemon.lab import CGROUP_PARENT, Lab, until

FIRST_ID, ID_COUNT = 100_000, 65_536


def _host_namespace(lab: Lab, kind: str) -> str:
    return os.readlink(f"/proc/{lab.namespaces.first_pid}/ns/{kind}")


async def _namespace(pod: Pod, kind: str) -> str:
    _, output = await pod.run("readlink", f"/proc/self/ns/{kind}")
    return output.strip()


async def test_a_pod_has_namespaces_of_its_own_and_its_containers_share_them(
    make_pod: MakePod, lab: Lab
) -> None:
    pod = await make_pod()
    for kind in ("net", "ipc", "uts"):
        shared = await _namespace(pod, kind)
        assert shared == await _namespace(pod, kind), kind
        assert shared != _host_namespace(lab, kind), kind
    first, second = await pod.running(), await pod.running()
    own = {os.readlink(lab.path(f"/proc/{container.pid}/ns/pid")) for container in (first, second)}
    assert len(own | {_host_namespace(lab, "pid")}) == 3
    assert pod.pid == 0, "no process stands for the pod"


@pytest.mark.parametrize(
    ("config", "shared", "own"),
    [
        ({"network": cri.NODE}, {"net", "uts"}, {"ipc", "pid"}),
        ({"ipc": cri.NODE}, {"ipc"}, {"net", "uts", "pid"}),
        ({"pid": cri.NODE}, {"pid"}, {"net", "uts", "ipc"}),
        ({"network": cri.NODE, "ipc": cri.NODE, "pid": cri.NODE}, {"net", "uts", "ipc", "pid"}, set()),
    ],
    ids=["network", "IPC", "PID", "all"],
)
async def test_a_pod_shares_with_the_host_what_it_asks_for(
    make_pod: MakePod, lab: Lab, config: dict[str, Any], shared: set[str], own: set[str]
) -> None:
    pod = await make_pod(**config)
    for kind in shared:
        assert await _namespace(pod, kind) == _host_namespace(lab, kind), kind
    for kind in own:
        assert await _namespace(pod, kind) != _host_namespace(lab, kind), kind


async def test_containers_talk_over_the_pods_localhost(make_pod: MakePod) -> None:
    pod = await make_pod()
    server = await pod.running("nc", "-l", "-p", "80", "-e", "echo", "hello", uid=1000, gid=1000)
    script = "until nc 127.0.0.1 80 2>/dev/null </dev/null; do sleep 0.02; done"
    assert await pod.run("sh", "-c", script) == (0, "hello\n")
    assert await server.wait() == 0


async def test_ports_below_1024_and_ping_need_no_privilege_in_a_pod(make_pod: MakePod) -> None:
    pod = await make_pod()
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"
    _, output = await pod.run("sh", "-c", script)
    assert output.split() == ["0", "0", "2147483647"]


async def test_sysctls_are_the_pods_alone(make_pod: MakePod, lab: Lab) -> None:
    before = lab.run("sysctl", "-n", "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range")
    settings = {"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "2000 3000"}
    for kind in (cri.CONTAINER, cri.POD):
        pod = await make_pod(pid=kind, sysctls=settings)
        _, output = await pod.run(
            "cat", "/proc/sys/kernel/shm_rmid_forced", "/proc/sys/net/ipv4/ip_local_port_range"
        )
        assert output.split() == ["1", "2000", "3000"]
    assert lab.run("sysctl", "-n", "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range") == before


async def test_the_host_name_is_the_pods(make_pod: MakePod, lab: Lab) -> None:
    pod = await make_pod(hostname="web-0")
    assert await pod.run("sh", "-c", "hostname; cat /etc/hostname") == (0, "web-0\nweb-0\n")
    node = await make_pod(network=cri.NODE)
    host = lab.run("hostname")
    assert await node.run("sh", "-c", "hostname; cat /etc/hostname") == (0, host * 2)


async def test_the_files_of_a_pod_are_in_each_container(make_pod: MakePod) -> None:
    dns = cri.DNSConfig(
        servers=["10.0.0.10", "10.0.0.11"], searches=["a.test", "b.test"], options=["ndots:5", "edns0"]
    )
    pod = await make_pod(dns=dns)
    expected = "search a.test b.test\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5 edns0\n"
    assert await pod.run("cat", "/etc/resolv.conf", uid=1000, gid=1000) == (0, expected)
    assert await pod.run("cat", "/etc/hosts") == (0, Path("/etc/hosts").read_text())
    plain = await make_pod()
    assert await plain.run("cat", "/etc/resolv.conf") == (0, Path("/etc/resolv.conf").read_text())


async def test_files_that_the_engine_mounts_are_left_alone(pod: Pod, lab: Lab) -> None:
    container = pod.container("cat", "/etc/hosts")
    lab.path(f"{container.directory}/hosts").write_text("the kubelet's\n")
    container.spec["mounts"].append(
        {
            "destination": "/etc/hosts",
            "type": "bind",
            "source": f"{container.directory}/hosts",
            "options": ["rbind", "ro"],
        }
    )
    container.write_spec()
    await container.create()
    assert await container.run() == (0, "the kubelet's\n")


async def test_containers_share_the_pods_memory_file_system(make_pod: MakePod) -> None:
    pod, other = await make_pod(), await make_pod()
    script = "stat -c %a /dev/shm; df -m /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; echo word >/dev/shm/file"
    assert await pod.run("sh", "-c", script, uid=1000, gid=1000) == (0, "1777\n64\n")
    assert await pod.run("cat", "/dev/shm/file") == (0, "word\n")
    assert await other.run("ls", "/dev/shm") == (0, "")


async def test_a_pod_with_the_hosts_ipc_has_the_hosts_memory_file_system(make_pod: MakePod, lab: Lab) -> None:
    pod = await make_pod(ipc=cri.NODE)
    file = lab.path("/dev/shm/sandboxd-test")
    file.write_text("of the host")
    try:
        assert await pod.run("cat", "/dev/shm/sandboxd-test") == (0, "of the host")
    finally:
        file.unlink()


# -- a shared PID namespace ------------------------------------------------------------------------


async def test_containers_of_a_shared_pid_namespace_see_each_other(make_pod: MakePod) -> None:
    pod = await make_pod(pid=cri.POD)
    assert pod.pid > 1
    assert (await pod.controller("Status", pod.id)).pid == pod.pid
    first = await pod.running("sleep", "1234")
    _, output = await pod.run("ps", "-o", "pid,args")
    assert "sleep 1234" in output
    assert output.splitlines()[1].split()[0] == "1"
    # The end of one container is not that of the others.
    await first.kill(9)
    assert await first.wait() == 137
    assert await pod.run("echo", "alive") == (0, "alive\n")


async def test_the_init_of_a_pod_shows_nothing_of_the_host(make_pod: MakePod) -> None:
    pod = await make_pod(pid=cri.POD)
    script = "ls -A /proc/1/root/ /proc/1/cwd/ 2>&1; ls /proc/1/fd 2>&1; cat /proc/1/environ 2>&1; cat /proc/1/cmdline"
    code, output = await pod.run("sh", "-c", script)
    assert code == 0
    assert not {"bin", "etc", "usr", "run", "work"} & set(output.split()), output
    assert "PATH" not in output


async def test_what_outlives_the_first_process_dies_with_it(make_pod: MakePod) -> None:
    pod = await make_pod(pid=cri.POD)
    script = "trap '' HUP TERM; (trap '' HUP TERM; sleep 4321) & echo ready; sleep 0.05"
    container = await pod.running("sh", "-c", script)
    assert await container.wait() == 0
    _, output = await pod.run("ps", "-o", "args")
    assert "sleep 4321" not in output
    await container.stdout.end()


async def test_the_death_of_the_init_is_the_end_of_the_pod(make_pod: MakePod, lab: Lab) -> None:
    pod = await make_pod(pid=cri.POD)
    container = await pod.running()
    waiting = pod.controller.begin("Wait", pod.id)
    lab.run("kill", "-9", str(pod.pid))
    answer = await waiting
    assert answer.exit_status == 137
    assert answer.exited_at.seconds > 0
    assert await container.wait() == 137
    status = await pod.controller("Status", pod.id)
    assert (status.state, status.pid) == ("SANDBOX_NOTREADY", 0)
    await pod.controller("Stop", pod.id)


# -- user namespaces -------------------------------------------------------------------------------


@pytest.mark.parametrize("pid", [cri.CONTAINER, cri.POD], ids=["own PIDs", "shared PIDs"])
@pytest.mark.parametrize("network", [cri.NODE, cri.POD], ids=["host network", "own network"])
async def test_a_user_namespace_pod(
    make_pod: MakePod, lab: Lab, pid: cri.NamespaceMode, network: cri.NamespaceMode
) -> None:
    netns = None
    holder = ""
    if network == cri.POD:
        holder = _network_with_owner(lab)
        netns = "/run/lab/userns/net"
    pod = await make_pod(network=network, pid=pid, user_namespace=(FIRST_ID, ID_COUNT), netns=netns)
    try:
        container = pod.container(
            "sh",
            "-c",
            "id -u; cat /proc/self/uid_map; echo mine >/dev/shm/x; echo again >/dev/stdout; sleep 1000",
        )
        # The snapshotter maps the layers below; the one on top belongs to the pod's root.
        lab.run("chown", f"{FIRST_ID}:{FIRST_ID}", container.upper)
        await container.create()
        await container.start()
        output = await container.stdout.until(b"again")
        assert output.split() == [b"0", b"0", b"100000", b"65536", b"again"]
        status = lab.path(f"/proc/{container.pid}/status").read_text()
        assert f"Uid:\t{FIRST_ID}" in status
        assert await container.run_exec("id", "-u", uid=1000, gid=1000) == (0, "1000\n")
        with refused(Code.INVALID_ARGUMENT, "70000"):
            await container.exec("id", uid=70_000)
    finally:
        if holder:
            await pod.remove()
            lab.run("sh", "-c", "umount /run/lab/userns/net; rm -r /run/lab/userns")


def _network_with_owner(lab: Lab) -> str:
    """A network namespace that belongs to a user namespace, as containerd makes it for such a pod."""
    script = (
        "mkdir /run/lab/userns; touch /run/lab/userns/net; unshare --user --net sleep 100 & pid=$!; "
        "until [ $(readlink /proc/$pid/ns/net) != $(readlink /proc/self/ns/net) ]; do :; done; "
        f"echo '0 {FIRST_ID} {ID_COUNT}' >/proc/$pid/uid_map; echo '0 {FIRST_ID} {ID_COUNT}' >/proc/$pid/gid_map; "
        "mount --bind /proc/$pid/ns/net /run/lab/userns/net; kill $pid"
    )
    return lab.run("sh", "-c", script) or "made"


# -- TARGET mode -----------------------------------------------------------------------------------


async def test_a_container_can_join_the_pid_namespace_of_another_one_of_its_pod(pod: Pod) -> None:
    target = await pod.running("sleep", "2468")
    debugger = pod.container("ps", "-o", "args", target=target)
    await debugger.create()
    code, output = await debugger.run()
    assert code == 0
    assert "sleep 2468" in output
    assert await target.state() == "running"


async def test_the_pid_namespace_of_an_ended_target_is_refused(pod: Pod) -> None:
    target = await pod.running("true")
    await target.wait()
    debugger = pod.container("ps", target=target)
    with refused(Code.INVALID_ARGUMENT, f"/proc/{target.pid}/ns/pid"):
        await debugger.create()


async def test_the_target_in_another_pod_is_refused(make_pod: MakePod, pod: Pod) -> None:
    other = await make_pod(network=cri.NODE)
    target = await other.running()
    with refused(Code.INVALID_ARGUMENT, f"/proc/{target.pid}/ns/pid"):
        await pod.container("ps", target=target).create()
    execed = await target.exec("sleep", "1000")
    pid = await execed.start()
    target.pid = pid
    with refused(Code.INVALID_ARGUMENT, f"/proc/{pid}/ns/pid"):
        await pod.container("ps", target=target).create()


# -- what the engine asks about a pod --------------------------------------------------------------


async def test_status_tells_all_and_the_platform_is_linux(make_pod: MakePod) -> None:
    pod = await make_pod()
    status = await pod.controller("Status", pod.id, verbose=True)
    assert (status.state, status.version, status.address) == ("SANDBOX_READY", 3, pod.address)
    assert status.created_at.seconds > 1_500_000_000
    assert json.loads(status.info["info"])["netNamespace"] == pod.netns_path
    assert not (await pod.controller("Status", pod.id)).info
    platform = (await pod.controller("Platform", pod.id)).platform
    assert (platform.os, platform.architecture) == (
        "linux",
        {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
    )


async def test_metrics_are_those_of_the_pods_cgroup(pod: Pod, lab: Lab) -> None:
    metric = (await pod.controller("Metrics", pod.id)).metrics
    assert metric.id == pod.id
    assert metric.data.type_url in ("io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics")
    if metric.data.type_url == "io.containerd.cgroups.v1.Metrics":
        limit = lab.path(f"/sys/fs/cgroup/memory{CGROUP_PARENT}/memory.limit_in_bytes").read_text()
        assert MetricsV1.FromString(metric.data.value).memory.usage.limit == int(limit)


async def test_stop_kills_frees_the_network_and_answers_the_waiting(make_pod: MakePod, lab: Lab) -> None:
    pod = await make_pod(pid=cri.POD)
    container = await pod.running("sh", "-c", "trap '' TERM; sleep 1000")
    waits = [asyncio.ensure_future(pod.controller.begin("Wait", pod.id)) for _ in range(3)]
    await pod.controller("Stop", pod.id)
    for answer in await asyncio.gather(*waits):
        assert answer.exit_status == 0
        assert answer.exited_at.seconds > 0
    assert (await pod.controller("Wait", pod.id)).exit_status == 0
    assert (await pod.controller("Status", pod.id)).state == "SANDBOX_NOTREADY"
    assert await container.state() == "stopped"
    assert await container.wait() == 137
    network = os.stat(lab.path(pod.netns_path)).st_ino
    for process in lab.processes():
        try:
            assert os.stat(lab.path(f"/proc/{process}/ns/net")).st_ino != network
        except OSError:  # it has ended
            continue
    await pod.controller("Stop", pod.id)
    await pod.controller("Stop", pod.id, timeout_secs=1)
    with pytest.raises(Exception, match=container.id):
        await container.start()


async def test_shutdown_without_stop_removes_everything(make_pod: MakePod) -> None:
    pod = await make_pod()
    await pod.running()
    await pod.running("sh", "-c", "trap '' TERM; sleep 1000")
    process = await pod.containers[0].exec("sleep", "1000")
    await process.start()
    paused = await pod.running()
    await pod.task("Pause", id=paused.id)
    waiting = pod.controller.begin("Wait", pod.id)
    await pod.controller("Shutdown", pod.id)
    await waiting
    with refused(Code.NOT_FOUND, pod.id):
        await pod.controller("Status", pod.id)
    await pod.controller("Shutdown", pod.id)
    await until(lambda: pod.task.client.closed, 20, "the end of the connection")


async def test_a_pod_that_was_never_started_can_be_stopped_and_shut_down(make_pod: MakePod) -> None:
    pod = await make_pod(start=False)
    assert (await pod.controller("Status", pod.id)).state == "SANDBOX_NOTREADY"
    await pod.controller("Stop", pod.id)
    with refused(Code.FAILED_PRECONDITION, pod.id):
        await pod.controller("Start", pod.id)
    await pod.controller("Shutdown", pod.id)


async def test_everything_of_a_pod_is_closed_to_other_users(make_pod: MakePod) -> None:
    pod = await make_pod(pid=cri.POD)
    await pod.running()
    assert pod.file("").stat().st_mode & 0o777 == 0o700
    assert pod.file("task.sock").stat().st_mode & 0o777 == 0o600
    assert pod.daemon.socket.stat().st_mode & 0o777 == 0o600
    assert pod.file("tasks").stat().st_mode & 0o077 == 0
