"""What a pod in a virtual machine is, seen through a real engine; under emulation, so that it runs everywhere."""

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from proto.gen.runtime.v1 import api_pb2 as api
from proto.gen.runtime.v1 import service_pb2 as pb
from tests.children import children_of
from tests.engine.cri import CONTAINER, NODE, RUNNING, Cri, container_config, log_lines, matching, pod_config
from tests.engine.engine import OURS_IN_QEMU, PYTHON, Engine
from tests.engine.images import CHECKOUT
from tests.engine.namespaces import wait_until
from tests.engine.qemu import add_container, information, machine_directory, start_vm_container
from tests.engine.streaming import Stream, exec_piped
from tests.engine.test_pods import ended, expect_nothing_more_than, remains, shell
from tests.guest_image import guest_image


@pytest.fixture(scope="module")
def engine(vm_engine: Engine) -> Engine:
    return vm_engine


@pytest.fixture(scope="module")
def vm(engine: Engine) -> Iterator[tuple[str, str]]:
    """A pod with a container that the tests of this module share."""
    pod_id, container = start_vm_container(engine.cri)
    yield pod_id, container
    engine.cri.stop_pod(pod_id)
    engine.cri.remove_pod(pod_id)


@pytest.fixture
def cri(engine: Engine) -> Cri:
    return engine.cri


def files_daemon(engine: Engine, pod_id: str) -> int:
    """The pid of the process that serves the files of a pod's share, which is a child of the machine's."""
    parent = information(engine.cri, pod_id)["machine"]["share-pod"]
    (virtiofsd,) = children_of(parent, engine.namespaces.root / "proc")
    return virtiofsd


def test_a_pod_has_a_kernel_of_its_own(engine: Engine, cri: Cri, vm: tuple[str, str]) -> None:
    _, container = vm
    assert shell(cri, container, "uname -r") != os.uname().release
    assert (
        shell(cri, container, "cat /proc/sys/kernel/random/boot_id")
        != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    )


def test_the_pods_network_is_the_engines(cri: Cri, vm: tuple[str, str]) -> None:
    pod_id, container = vm
    assert cri.pod(pod_id).network.ip in shell(cri, container, "ip addr show eth0")
    assert "1 packets received" in shell(cri, container, "ping -c 1 -W 5 10.88.0.1")


def test_containers_of_a_pod_share_network_hostname_ipc_and_shared_memory(
    cri: Cri, vm: tuple[str, str]
) -> None:
    pod_id, one = vm
    two = add_container(cri, pod_id, name="two")
    shell(cri, one, "echo shared > /dev/shm/file")
    assert shell(cri, two, "cat /dev/shm/file") == "shared"
    assert shell(cri, one, "hostname") == shell(cri, two, "cat /etc/hostname")
    for kind in ("net", "ipc", "uts"):
        link = f"readlink /proc/self/ns/{kind}"
        assert shell(cri, one, link) == shell(cri, two, link)
    assert shell(cri, one, "readlink /proc/self/ns/pid") != shell(cri, two, "readlink /proc/self/ns/pid")


def test_exec_returns_both_streams_and_the_exit_code(cri: Cri, vm: tuple[str, str]) -> None:
    answer = cri.exec(vm[1], ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 3)


def test_a_large_output_arrives_whole(cri: Cri, vm: tuple[str, str]) -> None:
    answer = cri.exec(vm[1], ["sh", "-c", "seq 1 200000"], timeout_s=60)
    expected = b"".join(b"%d\n" % number for number in range(1, 200001))
    assert hashlib.sha256(answer.stdout).hexdigest() == hashlib.sha256(expected).hexdigest()


def test_input_arrives_whole_and_ends(engine: Engine, vm: tuple[str, str]) -> None:
    data = os.urandom(200_000)
    with exec_piped(engine, vm[1], "sh", "-c", "cat; exit 6") as piped, ThreadPoolExecutor(1) as pool:
        assert piped.stdin is not None
        assert piped.stdout is not None
        writing = pool.submit(piped.stdin.write, data)
        received = piped.stdout.read(100_000)
        writing.result()
        # Not before: its client overlooks an end that comes while the exec is still registered.
        piped.stdin.close()
        assert received + piped.stdout.read() == data
        assert piped.wait(timeout=20) == 6


def test_exec_of_a_missing_program_is_an_error(cri: Cri, vm: tuple[str, str]) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        cri.exec(vm[1], ["/no/such/program"])
    assert "/no/such/program" in str(raised.value)
    assert cri.exec(vm[1], ["true"]).exit_code == 0


def test_an_exec_past_its_limit_is_killed(cri: Cri, vm: tuple[str, str]) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        cri.exec(vm[1], ["sleep", "600"], timeout_s=1)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "sleep 600" not in shell(cri, vm[1], "ps")


def test_an_interactive_exec_reads_what_is_typed_and_knows_its_size(
    engine: Engine, cri: Cri, vm: tuple[str, str]
) -> None:
    request = pb.ExecRequest(container_id=vm[1], cmd=["sh"], tty=True, stdin=True, stdout=True)
    with Stream(engine, cri.runtime.Exec(request, timeout=20).url) as stream:
        stream.resize(91, 17)
        # A resize has a way of its own, and no answer.
        stream.ask(b"echo a$((1+1))b; stty size\n", b"a2b\r\n17 91")
        stream.write(b"exit 5\n")
        assert stream.wait() == 5


def test_logs_arrive_with_their_stream(cri: Cri, vm: tuple[str, str], logs: Path) -> None:
    pod = pod_config(host_network=False, log_directory=str(logs))
    pod_id = cri.run_pod(pod, OURS_IN_QEMU)
    script = "echo plain; echo reopened > /dev/stdout; echo wrong > /dev/stderr"
    container = cri.create(pod_id, container_config(["sh", "-c", script], log_path="main.log"), pod)
    cri.start(container)
    assert ended(cri, container).exit_code == 0
    assert sorted(cri.finished_log(logs / "main.log")) == ["plain", "reopened", "wrong"]
    assert log_lines(logs / "main.log", "stderr") == ["wrong"]
    cri.stop_pod(pod_id)
    cri.remove_pod(pod_id)


@pytest.mark.parametrize(("script", "code"), [("true", 0), ("exit 42", 42), ("kill -9 $$", 137)])
def test_the_exit_code_is_the_containers(cri: Cri, vm: tuple[str, str], script: str, code: int) -> None:
    container = add_container(cri, vm[0], "sh", "-c", f"sh -c '{script}'; exit $?", name=f"exit{code}")
    status = ended(cri, container)
    assert status.exit_code == code
    assert status.created_at < status.finished_at
    cri.remove_container(container)


def test_a_container_that_ignores_sigterm_is_killed_after_its_grace(cri: Cri, vm: tuple[str, str]) -> None:
    container = add_container(
        cri, vm[0], "sh", "-c", "trap '' TERM; while :; do sleep 1; done", name="stubborn"
    )
    began = time.monotonic()
    cri.stop_container(container, grace_s=1)
    assert 0.9 < time.monotonic() - began < 20
    assert cri.container(container).exit_code == 137


def test_a_container_out_of_memory_says_so_and_its_neighbours_live(cri: Cri, vm: tuple[str, str]) -> None:
    linux = matching(pod_config(host_network=False))
    linux.resources.memory_limit_in_bytes = 16 << 20
    hog = "exec dd if=/dev/zero of=/dev/null bs=64M count=1"
    container = add_container(cri, vm[0], "sh", "-c", hog, name="hog", linux=linux)
    status = ended(cri, container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert cri.container(vm[1]).state == RUNNING


def test_a_guest_out_of_memory_loses_who_takes_it_and_nobody_else(cri: Cri, vm: tuple[str, str]) -> None:
    # Without a limit of its own, as much as the whole machine has.
    total = "total=$(awk '/MemTotal/ { print $2 }' /proc/meminfo)"
    glutton = f"{total}; exec dd if=/dev/zero of=/dev/null bs=$((total - 8192))k count=1"
    status = ended(cri, add_container(cri, vm[0], "sh", "-c", glutton, name="glutton"))
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert cri.container(vm[1]).state == RUNNING
    assert shell(cri, vm[1], "echo alive") == "alive"


def test_stats_tell_cpu_and_memory(cri: Cri, vm: tuple[str, str]) -> None:
    shell(cri, vm[1], "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done")
    assert cri.stats(vm[1]).cpu.usage_core_nano_seconds.value > 0
    assert cri.stats(vm[1]).memory.working_set_bytes.value > 0


def test_volumes_are_the_hosts_directories_and_files(cri: Cri, vm: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "file").write_text("from the host")
    mounts = [
        pb.Mount(container_path="/volume", host_path=str(tmp_path / "volume")),
        pb.Mount(container_path="/fixed", host_path=str(tmp_path / "volume"), readonly=True),
        pb.Mount(container_path="/etc/file", host_path=str(tmp_path / "file")),
    ]
    container = add_container(cri, vm[0], name="volumes", mounts=mounts)
    assert shell(cri, container, "cat /etc/file") == "from the host"
    shell(cri, container, "echo from the guest > /volume/back")
    assert (tmp_path / "volume/back").read_text() == "from the guest\n"
    assert cri.exec(container, ["touch", "/fixed/no"]).exit_code != 0
    # As the kubelet changes a ConfigMap: a link that turns to another directory.
    for version in ("1", "2"):
        (tmp_path / f"volume/v{version}").mkdir()
        (tmp_path / f"volume/v{version}/key").write_text(version)
        (tmp_path / "new").symlink_to(f"v{version}")
        (tmp_path / "new").rename(tmp_path / "volume/data")
        wait_until(
            lambda: cri.exec(container, ["cat", "/volume/data/key"]).stdout.decode() == version,  # noqa: B023
            timeout_s=20,
            what="the change to be seen",
        )
    cri.stop_container(container)
    cri.remove_container(container)


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A block device of the host, and the file behind it."""
    file = tmp_path / "disk"
    file.write_bytes(b"before".ljust(4 << 20, b"."))
    command = ["losetup", "--find", "--show", str(file)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield device, file
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_volume_is_the_containers_and_has_what_was_written_when_the_pod_has_stopped(
    engine: Engine, cri: Cri, block_device: tuple[str, Path]
) -> None:
    device, file = block_device
    pod = pod_config(host_network=False)
    pod_id = cri.run_pod(pod, OURS_IN_QEMU)
    for number in range(2):
        # Removed with the first container, plugged in again for the second.
        script = f"head -c 6 /dev/volume; exec 3<>/dev/volume; printf after{number} >&3; exec sleep 1000000"
        config = container_config(["sh", "-c", script], name=f"c{number}")
        config.devices.append(pb.Device(container_path="/dev/volume", host_path=device, permissions="rw"))
        container = cri.create(pod_id, config, pod)
        cri.start(container)
        wait_until(
            lambda: cri.exec(container, ["head", "-c", "6", "/dev/volume"]).stdout == b"after%d" % number,  # noqa: B023
            timeout_s=20,
            what="what the container writes",
        )
        if not number:
            cri.stop_container(container, grace_s=0)
            cri.remove_container(container)
            assert file.read_bytes()[:6] == b"after0"
    cri.stop_pod(pod_id)
    assert file.read_bytes()[:6] == b"after1"
    cri.remove_pod(pod_id)
    log = (engine.logs / "sandboxer.log").read_text()
    assert "guest.not_shut_down" not in log
    assert "disk.not_detached" not in log


def test_containers_that_come_and_go_leave_nothing_open_or_mounted_on_the_host(
    engine: Engine, cri: Cri, vm: tuple[str, str]
) -> None:
    open_files_of = engine.namespaces.root / f"proc/{files_daemon(engine, vm[0])}/fd"

    def cycle(number: int) -> int:
        container = add_container(cri, vm[0], name=f"passing{number}")
        cri.stop_container(container, grace_s=0)
        cri.remove_container(container)
        return len(os.listdir(open_files_of))

    # Each would leave its directory, its configuration and its root; those of the last second are still there.
    open_files = [cycle(number) for number in range(20)]
    assert max(open_files[10:]) <= max(open_files[:10]) + 9


@pytest.fixture
def nested(engine: Engine, tmp_path: Path) -> Iterator[pb.Mount]:
    """A volume in which the host has mounted something: a file system with a program."""
    place = tmp_path / "nested"
    place.mkdir()
    engine.namespaces.run(["mount", "-t", "tmpfs", "tmpfs", str(place)])
    engine.namespaces.run(["cp", str(CHECKOUT / ".cache/busybox/busybox"), f"{place}/sleep"])
    yield pb.Mount(container_path="/volume", host_path=str(tmp_path))
    engine.namespaces.run(["umount", str(place)])


@pytest.mark.parametrize("program", ["sleep", "/volume/nested/sleep"])
def test_containers_may_be_killed_while_the_host_is_slow_to_read_their_files(
    engine: Engine, cri: Cri, vm: tuple[str, str], nested: pb.Mount, program: str
) -> None:
    pod_id, neighbour = vm
    virtiofsd = files_daemon(engine, pod_id)
    halting = f"while kill -STOP {virtiofsd}; do sleep 0.006; kill -CONT {virtiofsd}; sleep 0.004; done"
    with open(os.devnull, "wb") as nowhere:
        slower = engine.namespaces.spawn(["sh", "-c", halting], nowhere)
    try:
        for number in range(8):
            # Killed at once: its program is being read.
            name = f"abrupt{number}"
            container = add_container(cri, pod_id, program, "1000000", name=name, mounts=[nested])
            cri.stop_container(container)
            cri.remove_container(container)
    finally:
        slower.stop(signal.SIGKILL)
        engine.namespaces.run(["kill", "-CONT", str(virtiofsd)])
    assert "Busy inodes" not in (machine_directory(engine, pod_id) / "console.log").read_text(
        errors="replace"
    )
    assert shell(cri, neighbour, "echo alive") == "alive"


def test_a_port_of_the_guest_is_reached_from_the_pods_namespace(
    engine: Engine, cri: Cri, vm: tuple[str, str]
) -> None:
    pod_id, container = vm
    shell(cri, container, "mkdir -p /tmp/www && echo served > /tmp/www/index.html; httpd -p 8080 -h /tmp/www")
    # As the engine does for PortForward, which dials localhost there, and nobody listens there.
    namespace = Path(information(cri, pod_id)["netNamespace"])
    for address in ("127.0.0.1", "[::1]"):
        request = ["nsenter", f"--net={namespace}", "busybox", "wget", "-qO-", f"http://{address}:8080/"]
        assert engine.namespaces.run(request).stdout == "served\n"
    ip = cri.pod(pod_id).network.ip
    answer = engine.namespaces.run(["busybox", "wget", "-qO-", f"http://{ip}:8080/"]).stdout
    assert answer == "served\n"


@pytest.mark.parametrize(
    ("field", "namespaces"),
    [
        ("hostNetwork", api.NamespaceOption(pid=CONTAINER, network=NODE)),
        ("hostPID", api.NamespaceOption(pid=NODE)),
        ("hostIPC", api.NamespaceOption(pid=CONTAINER, ipc=NODE)),
    ],
)
def test_a_pod_that_wants_the_hosts_namespaces_is_refused_by_field(
    cri: Cri, field: str, namespaces: api.NamespaceOption
) -> None:
    pod = pod_config(host_network=field == "hostNetwork", namespaces=namespaces)
    with pytest.raises(grpc.RpcError, match=field):
        cri.run_pod(pod, OURS_IN_QEMU)


def test_a_program_that_does_not_exist_fails_the_start_and_disturbs_nobody(
    cri: Cri, vm: tuple[str, str]
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        add_container(cri, vm[0], "/no/such/program", name="missing")
    assert "/no/such/program" in str(raised.value)
    assert cri.exec(vm[1], ["true"]).exit_code == 0


def test_an_operator_sees_the_console_and_what_the_host_has(engine: Engine, vm: tuple[str, str]) -> None:
    def sandboxctl(*words: str) -> str:
        command = [
            str(PYTHON),
            "-m",
            "sandboxctl",
            "--config",
            str(engine.directory / "qemu.yaml"),
            *words,
        ]
        return engine.namespaces.run(command, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}).stdout

    assert "Linux version" in sandboxctl("console", vm[0])
    assert str(guest_image()) in "".join(sandboxctl("doctor").split()).replace("->", "")
    assert vm[0] in sandboxctl("ps", "-q")
    explanation = sandboxctl("explain", vm[0])
    assert "It waits for nothing" in explanation
    assert "guest announced" in explanation and "guest configured" in explanation


def test_a_pod_leaves_nothing_behind(engine: Engine, cri: Cri, tmp_path: Path) -> None:
    def run_one() -> None:
        mounts = [pb.Mount(container_path="/volume", host_path=str(tmp_path))]
        pod_id, container = start_vm_container(cri, mounts=mounts)
        assert cri.exec(container, ["true"]).exit_code == 0
        cri.stop_pod(pod_id)
        cri.stop_pod(pod_id)
        cri.remove_pod(pod_id)
        cri.remove_pod(pod_id)

    run_one()
    before = remains(engine)
    run_one()
    expect_nothing_more_than(before, engine)
