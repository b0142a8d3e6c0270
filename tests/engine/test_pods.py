"""What a pod of ours is, seen through a real engine."""

import os
import time
from pathlib import Path

import grpc
import pytest

from proto.gen.runtime.v1 import api_pb2 as api
from proto.gen.runtime.v1 import service_pb2 as pb
from tests.durations import expect_within
from tests.engine.conftest import start_container
from tests.engine.cri import (
    CONTAINER,
    EXITED,
    NODE,
    READY,
    RUNNING,
    Cri,
    container_config,
    log_lines,
    matching,
    pod_config,
)
from tests.engine.daemons import stable_descriptors
from tests.engine.demo import process_tree
from tests.engine.engine import OURS, Engine
from tests.engine.namespaces import wait_until
from tests.settling import settle

POD = api.NamespaceMode.POD


def shell(cri: Cri, container: str, script: str) -> str:
    """The output of a script that must succeed."""
    answer = cri.exec(container, ["sh", "-c", script])
    assert answer.exit_code == 0, answer.stderr.decode()
    return answer.stdout.decode().strip()


def ended(cri: Cri, container: str) -> pb.ContainerStatus:
    wait_until(lambda: cri.container(container).state == EXITED, timeout_s=20, what="the container's end")
    return cri.container(container)


def remains(engine: Engine) -> set[str]:
    """Everything a pod could leave behind in the engine's world."""
    root = engine.namespaces.root
    found = {f"cgroup {path}" for base in engine.namespaces.cgroups for path, _, _ in os.walk(base)}
    found |= {f"file {path}" for path, _, _ in os.walk(root / "run/sandboxd")}
    found |= {f"netns {path.name}" for path in (root / "run/netns").glob("*")}
    mounts = Path(f"/proc/{engine.namespaces.first_pid}/mountinfo").read_text().splitlines()
    found |= {f"mount {line.split()[4]}" for line in mounts}
    found |= {f"process {line.split(maxsplit=1)[1]}" for line in process_tree(root / "proc")}
    return found | {f"daemon's {kind}" for kind in stable_descriptors(engine.daemon_pid)}


def expect_nothing_more_than(before: set[str], engine: Engine) -> None:
    """Fail unless, soon, nothing is left that was not there before: some of it ends after the engine has its answer."""
    assert settle(lambda: remains(engine) - before) == []


def test_a_pod_runs_without_a_shim_and_leaves_nothing_behind(engine: Engine, cri: Cri) -> None:
    def start(count: int) -> tuple[str, list[str]]:
        pod = pod_config(host_network=False)
        pod_id = cri.run_pod(pod, OURS)
        containers = [cri.create(pod_id, container_config(name=f"c{n}"), pod) for n in range(count)]
        for container in containers:
            cri.start(container)
        return pod_id, containers

    # The first pod leaves what belongs to the engine: its bridge, its parent cgroup, its directories.
    warm_up, _ = start(1)
    cri.stop_pod(warm_up)
    cri.remove_pod(warm_up)
    before = remains(engine)

    pod_id, containers = start(2)
    processes = process_tree(engine.namespaces.root / "proc")
    assert sum("sleep 1000000" in line for line in processes) == 2
    assert not any("containerd-shim" in line or "pause" in line for line in processes)
    assert cri.exec(containers[0], ["true"]).exit_code == 0
    cri.stop_pod(pod_id)
    cri.remove_pod(pod_id)

    expect_nothing_more_than(before, engine)


def test_containers_of_a_pod_share_network_hostname_ipc_and_shared_memory(cri: Cri) -> None:
    pod = pod_config(host_network=False, hostname="together")
    pod_id = cri.run_pod(pod, OURS)
    one, two = (cri.create(pod_id, container_config(name=name), pod) for name in ("one", "two"))
    cri.start(one)
    cri.start(two)

    shell(cri, one, "echo shared > /dev/shm/file")
    assert shell(cri, two, "cat /dev/shm/file") == "shared"
    assert shell(cri, one, "hostname") == shell(cri, two, "cat /etc/hostname") == "together"
    for kind in ("net", "ipc", "uts"):
        link = f"readlink /proc/self/ns/{kind}"
        assert shell(cri, one, link) == shell(cri, two, link)
    assert cri.pod(pod_id).network.ip in shell(cri, two, "ip addr show eth0")
    assert shell(cri, one, "readlink /proc/self/ns/pid") != shell(cri, two, "readlink /proc/self/ns/pid")


def test_a_pod_with_shared_processes_has_one_pid_namespace(cri: Cri) -> None:
    pod = pod_config(namespaces=api.NamespaceOption(pid=POD))
    pod_id = cri.run_pod(pod, OURS)
    configs = [container_config(("sleep", n), name=n, linux=matching(pod)) for n in ("1001", "1002")]
    one, two = (cri.create(pod_id, config, pod) for config in configs)
    cri.start(one)
    cri.start(two)
    assert "sleep 1001" in shell(cri, two, "ps")
    assert "sleep 1002" in shell(cri, one, "ps")
    cri.stop_container(one)
    assert cri.container(two).state == RUNNING


def test_host_modes_give_the_hosts_namespaces(engine: Engine, cri: Cri) -> None:
    pod = pod_config(namespaces=api.NamespaceOption(pid=NODE, ipc=NODE, network=NODE))
    pod_id = cri.run_pod(pod, OURS)
    container = cri.create(pod_id, container_config(linux=matching(pod)), pod)
    cri.start(container)
    for kind in ("pid", "ipc", "net", "uts"):
        host = os.readlink(f"/proc/{engine.namespaces.first_pid}/ns/{kind}")
        assert shell(cri, container, f"readlink /proc/self/ns/{kind}") == host


def test_a_user_namespace_maps_root_and_volumes(cri: Cri, tmp_path: Path) -> None:
    mapping = [api.IDMapping(host_id=100000, container_id=0, length=65536)]
    userns = api.UserNamespace(mode=POD, uids=mapping, gids=mapping)
    options = api.NamespaceOption(pid=CONTAINER, userns_options=userns)
    pod = pod_config(host_network=False, namespaces=options)
    volume = tmp_path / "volume"
    volume.mkdir()
    mount = pb.Mount(
        container_path="/volume", host_path=str(volume), uidMappings=mapping, gidMappings=mapping
    )
    pod_id = cri.run_pod(pod, OURS)
    container = cri.create(pod_id, container_config(linux=matching(pod), mounts=[mount]), pod)
    cri.start(container)
    assert shell(cri, container, "cat /proc/self/uid_map").split() == ["0", "100000", "65536"]
    assert shell(cri, container, "touch /volume/file && stat -c %u /volume/file") == "0"
    assert (volume / "file").stat().st_uid == 0


def test_sysctls_of_the_pod_apply_to_its_containers(cri: Cri) -> None:
    sysctls = {"net.ipv4.ip_local_port_range": "2000 3000", "kernel.shm_rmid_forced": "1"}
    pod = pod_config(host_network=False, sysctls=sysctls)
    pod_id = cri.run_pod(pod, OURS)
    container = cri.create(pod_id, container_config(), pod)
    cri.start(container)
    assert shell(cri, container, "cat /proc/sys/net/ipv4/ip_local_port_range").split() == ["2000", "3000"]
    assert shell(cri, container, "cat /proc/sys/kernel/shm_rmid_forced") == "1"


def test_exec_returns_both_streams_and_the_exit_code(cri: Cri) -> None:
    _, container = start_container(cri)
    answer = cri.exec(container, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 3)


def test_exec_of_a_missing_program_is_an_error_at_once(cri: Cri) -> None:
    _, container = start_container(cri)

    def expect_error() -> None:
        with pytest.raises(grpc.RpcError, match="/no/such/program"):
            cri.exec(container, ["/no/such/program"])

    expect_within(4.5, expect_error)  # the limits that it could wait for are 10 s
    assert cri.exec(container, ["true"]).exit_code == 0


def test_an_exec_past_its_limit_is_killed(cri: Cri) -> None:
    _, container = start_container(cri)
    with pytest.raises(grpc.RpcError) as raised:
        cri.exec(container, ["sleep", "600"], timeout_s=1)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "sleep 600" not in shell(cri, container, "ps")


def test_logs_arrive_even_from_a_user_who_reopens_standard_output(cri: Cri, logs: Path) -> None:
    pod = pod_config(log_directory=str(logs))
    pod_id = cri.run_pod(pod, OURS)
    linux = matching(pod, run_as_user=api.Int64Value(value=1234))
    script = "echo plain; echo reopened > /dev/stdout; echo wrong > /dev/stderr"
    container = cri.create(
        pod_id, container_config(["sh", "-c", script], log_path="main.log", linux=linux), pod
    )
    cri.start(container)
    assert ended(cri, container).exit_code == 0
    assert sorted(cri.finished_log(logs / "main.log")) == ["plain", "reopened", "wrong"]
    assert log_lines(logs / "main.log", "stderr") == ["wrong"]


@pytest.mark.parametrize(
    ("script", "code"), [("true", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_the_exit_code_is_the_containers(cri: Cri, script: str, code: int) -> None:
    # A process that is PID 1 of its namespace cannot kill itself; a child of it can.
    _, container = start_container(cri, "sh", "-c", f"sh -c '{script}'; exit $?")
    status = ended(cri, container)
    assert status.exit_code == code
    assert status.created_at < status.finished_at


def test_a_container_out_of_memory_says_so(cri: Cri) -> None:
    pod = pod_config()
    pod_id = cri.run_pod(pod, OURS)
    linux = matching(pod)
    linux.resources.memory_limit_in_bytes = 16 << 20
    hog = "dd if=/dev/zero of=/dev/null bs=64M count=1"
    container = cri.create(pod_id, container_config(["sh", "-c", f"exec {hog}"], linux=linux), pod)
    cri.start(container)
    status = ended(cri, container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_stats_tell_cpu_and_memory(cri: Cri) -> None:
    _, container = start_container(
        cri, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 600"
    )

    def busy() -> bool:
        return cri.stats(container).cpu.usage_core_nano_seconds.value > 0

    wait_until(busy, timeout_s=20, what="CPU time")
    assert cri.stats(container).memory.working_set_bytes.value > 0


def test_a_container_that_ignores_sigterm_is_killed_after_its_grace(cri: Cri) -> None:
    _, container = start_container(cri, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    began = time.monotonic()
    cri.stop_container(container, grace_s=1)
    assert 0.9 < time.monotonic() - began < 10
    assert cri.container(container).exit_code == 137


def test_a_terminal_is_one(cri: Cri, logs: Path) -> None:
    pod = pod_config(log_directory=str(logs))
    pod_id = cri.run_pod(pod, OURS)
    config = container_config(["sh", "-c", "tty; test -t 1 && echo terminal"], log_path="main.log", tty=True)
    container = cri.create(pod_id, config, pod)
    cri.start(container)
    assert ended(cri, container).exit_code == 0
    text = "\n".join(cri.finished_log(logs / "main.log"))
    assert "/dev/pts/0" in text
    assert "terminal" in text


def test_a_program_that_does_not_exist_fails_the_start_and_disturbs_nobody(cri: Cri) -> None:
    pod_id, neighbour = start_container(cri)
    pod = pod_config()
    other = cri.run_pod(pod, OURS)
    container = cri.create(other, container_config(["/no/such/program"]), pod)
    with pytest.raises(grpc.RpcError) as raised:
        cri.start(container)
    assert "/no/such/program" in str(raised.value)
    assert cri.exec(neighbour, ["true"]).exit_code == 0
    assert cri.pod(pod_id).state == READY


def test_a_pod_can_be_stopped_twice_and_removed_twice(cri: Cri) -> None:
    pod_id, _ = start_container(cri)
    cri.stop_pod(pod_id)
    cri.stop_pod(pod_id)
    cri.remove_pod(pod_id)
    cri.remove_pod(pod_id)


def test_a_pod_that_still_runs_can_be_removed(cri: Cri) -> None:
    pod_id, _ = start_container(cri)
    cri.remove_pod(pod_id)
    assert pod_id not in {pod.id for pod in cri.pods()}
