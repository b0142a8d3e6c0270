"""What a pod of WebAssembly modules is, seen through a real engine."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto.gen.runtime.v1 import api_pb2 as api
from proto.gen.runtime.v1 import service_pb2 as pb
from tests.durations import expect_within
from tests.engine.cri import RUNNING, Cri, pod_config
from tests.engine.demo import process_tree
from tests.engine.engine import Engine
from tests.engine.handlers import WASM
from tests.engine.images import BUSYBOX
from tests.engine.module_pods import ModulePod, cgroup_value, process_of, status_of
from tests.engine.namespaces import wait_until
from tests.engine.streaming import attach_stream, exec_piped, exec_stream
from tests.engine.test_pods import expect_nothing_more_than, remains

HANDLER = WASM
MIB = 1 << 20


@pytest.fixture
def pod(cri: Cri, tmp_path: Path) -> Iterator[ModulePod]:
    yield ModulePod(cri, tmp_path)


def test_a_pod_of_modules_runs_without_a_shim_and_leaves_nothing_behind(
    engine: Engine, cri: Cri, tmp_path: Path
) -> None:
    def live(pod: ModulePod) -> None:
        containers = [pod.start("/sleeper.wasm", name=f"c{number}") for number in range(2)]
        pod.wait_for_line("ready", "c1")
        assert cri.exec(containers[0], ["/say.wasm", "out", "err", "0"]).exit_code == 0
        assert not any(
            "shim" in line or "pause" in line for line in process_tree(engine.namespaces.root / "proc")
        )
        cri.stop_pod(pod.id)
        cri.remove_pod(pod.id)

    # The first pod leaves what belongs to the engine: its bridge, its parent cgroup, its directories.
    live(ModulePod(cri, tmp_path, pod_config(host_network=False)))
    before = remains(engine)
    live(ModulePod(cri, tmp_path, pod_config(host_network=False)))
    expect_nothing_more_than(before, engine)


def test_containers_of_a_pod_run_different_modules_side_by_side(pod: ModulePod) -> None:
    sleeper = pod.start("/sleeper.wasm", name="sleeper")
    pod.wait_for_line("ready", "sleeper")
    lines = pod.start("/lines.wasm", "10", "50", "0", name="lines")
    pod.wait_for_line("line 20", "lines")
    assert pod.run("/hello.wasm", name="hello") == (0, ["hello from wasm"], "Completed")
    assert pod.run("/component.wasm", name="component") == (0, ["hello from a component"], "Completed")
    assert pod.run("/failing_component.wasm", name="failing").code == 1
    assert [pod.cri.container(container).state for container in (sleeper, lines)] == [RUNNING, RUNNING]


def test_arguments_environment_and_working_directory_are_the_specifications(pod: ModulePod) -> None:
    outcome = pod.run("/show.wasm", "one", "two words", "", env={"NAME": "a=b c"}, working_dir="/tmp")
    assert outcome.code == 0
    assert [line for line in outcome.lines if line.startswith("argument")] == [
        "argument /show.wasm",
        "argument one",
        "argument two words",
        "argument ",
    ]
    assert "variable NAME=a=b c" in outcome.lines


def test_relative_paths_begin_at_the_working_directory(pod: ModulePod) -> None:
    assert pod.run("tmp/../say.wasm", "out", "err", "0", name="root").code == 0
    assert pod.run("../say.wasm", "out", "err", "0", name="tmp", working_dir="/tmp").code == 0


def test_a_module_without_a_slash_is_looked_for_in_the_path(pod: ModulePod) -> None:
    assert pod.run("say.wasm", "out", "err", "4", env={"PATH": "/tmp:/"}).code == 4


def test_both_outputs_are_in_the_log_and_the_exit_code_is_the_modules(pod: ModulePod) -> None:
    for code in (0, 1, 42, 125):
        outcome = pod.run("/say.wasm", "to standard output", "to standard error", str(code), name=f"c{code}")
        assert outcome.code == code
        assert sorted(outcome.lines) == ["to standard error", "to standard output"]


def test_exec_runs_another_module_of_the_image(pod: ModulePod) -> None:
    container = pod.start("/sleeper.wasm")
    answer = pod.cri.exec(container, ["/say.wasm", "out", "err", "3"])
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 3)
    # What an exec writes, the next one reads: both are in the container's root.
    assert pod.cri.exec(container, ["/files.wasm", "write", "/tmp/file", "text"]).exit_code == 0
    assert pod.cri.exec(container, ["/files.wasm", "read", "/tmp/file"]).stdout == b"text"
    assert pod.cri.exec(container, ["/component.wasm"]).stdout == b"hello from a component\n"


def test_exec_of_a_missing_module_is_an_error_at_once(pod: ModulePod) -> None:
    container = pod.start("/sleeper.wasm")

    def expect_error() -> None:
        with pytest.raises(grpc.RpcError, match=r"no module /no/such\.wasm"):
            pod.cri.exec(container, ["/no/such.wasm"])

    expect_within(4.5, expect_error)  # the limits that it could wait for are 10 s
    assert pod.cri.exec(container, ["/say.wasm", "a", "b", "0"]).exit_code == 0


def test_an_exec_past_its_limit_is_killed(engine: Engine, pod: ModulePod) -> None:
    container = pod.start("/sleeper.wasm")
    cgroup = re.escape((process_of(engine, container) / "cgroup").read_text())
    with pytest.raises(grpc.RpcError) as raised:
        pod.cri.exec(container, ["/spin.wasm"], timeout_s=1)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED

    def members() -> int:
        processes = (path for path in (engine.namespaces.root / "proc").iterdir() if path.name.isdigit())
        return sum(bool(re.fullmatch(cgroup, _read(path / "cgroup"))) for path in processes)

    wait_until(lambda: members() == 1, timeout_s=20, what="the end of the exec")


def test_standard_input_reaches_a_module_and_its_end_too(engine: Engine, pod: ModulePod) -> None:
    container = pod.start("/sleeper.wasm")
    with exec_piped(engine, container, "/cat.wasm", "6") as piped:
        output, _ = piped.communicate(b"some\ntext\n", timeout=20)
    assert (output, piped.returncode) == (b"some\ntext\n", 6)


def test_who_attaches_talks_to_the_module(engine: Engine, pod: ModulePod) -> None:
    container = pod.start("/echo.wasm", "5", stdin=True)
    with attach_stream(engine, container) as stream:
        stream.ask(b"is anybody there\n", b"got is anybody there\n")
        stream.write(b"end\n")
        # Whoever hangs up at once may take his last words along: the engine drops what it has not passed on by then.
        assert pod.outcome(container).code == 5


def test_a_terminal_echoes_and_ends_with_the_module(engine: Engine, pod: ModulePod) -> None:
    container = pod.start("/echo.wasm", "9", stdin=True, tty=True)
    with attach_stream(engine, container, tty=True) as stream:
        # What is typed is shown, and then answered.
        stream.ask(b"typed\n", b"typed\r\ngot typed\r\n")
        stream.write(b"end\n")
        assert pod.outcome(container).code == 9
    with exec_stream(engine, pod.start("/sleeper.wasm", name="other"), "/cat.wasm", "7", tty=True) as stream:
        stream.write(b"line\n")
        stream.expect(b"line\r\nline\r\n")
        stream.write(b"\x04")
        assert stream.wait() == 7


@pytest.mark.parametrize("module", ["/sleeper.wasm", "/cat.wasm", "/spin.wasm"])
def test_sigterm_ends_a_module_whatever_it_does(engine: Engine, pod: ModulePod, module: str) -> None:
    container = pod.start(module, stdin=module == "/cat.wasm")
    began = time.monotonic()
    pod.cri.stop_container(container, grace_s=20)
    # Far below the grace, after which it would have been killed with another code.
    assert time.monotonic() - began < 10
    assert pod.outcome(container).code == 143


def test_sigkill_ends_a_module_with_its_code(engine: Engine, pod: ModulePod) -> None:
    container = pod.start("/sleeper.wasm")
    pod.wait_for_line("ready")
    engine.ctr(["tasks", "kill", "--signal", "SIGKILL", container])
    assert pod.outcome(container).code == 137


def test_a_signal_from_elsewhere_is_told_as_well(engine: Engine, pod: ModulePod) -> None:
    container = pod.start("/sleeper.wasm")
    pod.wait_for_line("ready")
    engine.namespaces.run(["kill", f"-{signal.SIGABRT.value}", str(engine.cri.pid(container))])
    assert pod.outcome(container).code == 128 + signal.SIGABRT


def test_a_paused_module_stands_still_and_goes_on(engine: Engine, pod: ModulePod) -> None:
    container = pod.start("/lines.wasm", "1", "20", "0")
    pod.wait_for_line("line 5")
    engine.ctr(["tasks", "pause", container])
    before = len(pod.lines())
    time.sleep(0.5)
    # What was in the pipe when it was frozen may still have arrived.
    assert len(pod.lines()) <= before + 2
    engine.ctr(["tasks", "resume", container])
    pod.wait_for_line(f"line {before + 10}")


def test_stats_tell_cpu_and_memory(pod: ModulePod) -> None:
    container = pod.start("/spin.wasm")
    wait_until(
        lambda: pod.cri.stats(container).cpu.usage_core_nano_seconds.value > 100e6,
        timeout_s=20,
        what="CPU time",
    )
    assert pod.cri.stats(container).memory.working_set_bytes.value > 0


def test_limits_are_the_cgroups_and_can_be_changed(engine: Engine, pod: ModulePod) -> None:
    limits = api.LinuxContainerResources(memory_limit_in_bytes=96 * MIB, cpu_period=100_000, cpu_quota=50_000)
    container = pod.start("/sleeper.wasm", resources=limits)
    process = process_of(engine, container)

    def memory() -> str:
        return cgroup_value(process, "memory/memory.limit_in_bytes", "memory.max")

    assert memory() == str(96 * MIB)
    assert cgroup_value(process, "cpu/cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    pod.cri.update(container, api.LinuxContainerResources(memory_limit_in_bytes=128 * MIB, cpu_quota=25_000))
    assert memory() == str(128 * MIB)
    assert cgroup_value(process, "cpu/cpu.cfs_quota_us", "cpu.max").split()[0] == "25000"


def test_memory_over_the_limit_ends_that_container_alone(pod: ModulePod) -> None:
    neighbour = pod.start("/sleeper.wasm", name="neighbour")
    limits = api.LinuxContainerResources(memory_limit_in_bytes=64 * MIB)
    outcome = pod.run("/grow.wasm", resources=limits)
    # Either its memory stops growing first, which the module reports, or the kernel ends it.
    assert (outcome.code, outcome.reason) in ((3, "Error"), (137, "OOMKilled"))
    assert pod.cri.container(neighbour).state == RUNNING


def test_files_are_those_of_the_root_and_of_mounts_with_their_access(pod: ModulePod, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "given").write_text("from outside")
    single = tmp_path / "single"
    single.write_text("one file")
    mounts = [
        pb.Mount(host_path=str(volume), container_path="/rw"),
        pb.Mount(host_path=str(volume), container_path="/ro", readonly=True),
        pb.Mount(host_path=str(single), container_path="/etc/single", readonly=True),
    ]
    container = pod.start("/sleeper.wasm", mounts=mounts)

    def files(*command: str) -> pb.ExecSyncResponse:
        return pod.cri.exec(container, ["/files.wasm", *command])

    assert files("read", "/ro/given").stdout == b"from outside"
    assert files("read", "/etc/single").stdout == b"one file"
    assert files("write", "/rw/new", "from inside").exit_code == 0
    assert (volume / "new").read_text() == "from inside"
    for path in ("/ro/new", "/etc/single"):
        refused = files("write", path, "no")
        assert refused.exit_code != 0 and path.encode() in refused.stderr
    assert (volume / "new").read_text() == "from inside"
    assert "say.wasm" in files("list", "/").stdout.decode().split()


def test_a_read_only_root_is_one(pod: ModulePod) -> None:
    container = pod.start("/sleeper.wasm", readonly_rootfs=True)
    refused = pod.cri.exec(container, ["/files.wasm", "write", "/tmp/file", "text"])
    assert refused.exit_code != 0 and b"/tmp/file" in refused.stderr


def test_a_pods_files_and_its_hostname_are_there(pod: ModulePod, cri: Cri, tmp_path: Path) -> None:
    named = ModulePod(cri, tmp_path, pod_config(host_network=False, hostname="together"))
    assert named.run("/files.wasm", "read", "/etc/hostname").lines == ["together"]


def test_a_modules_process_is_confined(engine: Engine, pod: ModulePod) -> None:
    profile = api.SecurityProfile(profile_type=api.SecurityProfile.ProfileType.RuntimeDefault)
    container = pod.start(
        "/sleeper.wasm",
        run_as_user=api.Int64Value(value=1234),
        run_as_group=api.Int64Value(value=1235),
        no_new_privs=True,
        seccomp=profile,
    )
    pod.wait_for_line("ready")
    process = process_of(engine, container)
    status = status_of(process)
    assert status["Uid"].split() == ["1234"] * 4
    assert status["Gid"].split() == ["1235"] * 4
    assert {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "CapInh": 0,
        "CapPrm": 0,
        "CapEff": 0,
        "CapBnd": 0,
        "CapAmb": 0,
    }
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert sorted(os.listdir(process / "root")) == sorted(os.listdir(process / "cwd"))
    assert "say.wasm" in os.listdir(process / "root")
    targets = {os.readlink(process / "fd" / fd) for fd in ("0", "1", "2")}
    others = {os.readlink(process / "fd" / fd) for fd in os.listdir(process / "fd")} - targets
    assert not {target for target in others if "sock" in target or target.startswith("/run")}


def test_containers_share_the_namespaces_of_their_pod_and_of_no_other(
    engine: Engine, cri: Cri, tmp_path: Path
) -> None:
    def namespaces(pod: ModulePod, name: str) -> list[str]:
        process = process_of(engine, pod.start("/sleeper.wasm", name=name))
        return [os.readlink(process / "ns" / kind) for kind in ("net", "ipc", "uts")]

    one, two = (ModulePod(cri, tmp_path, pod_config(host_network=False)) for _ in range(2))
    first = namespaces(one, "first")
    assert namespaces(one, "second") == first
    assert not set(namespaces(two, "third")) & set(first)
    host = {os.readlink(engine.namespaces.root / "proc/1/ns" / kind) for kind in ("net", "ipc", "uts")}
    assert not host & set(first)


def test_an_image_that_is_no_module_is_refused_with_the_handler_that_would_run_it(pod: ModulePod) -> None:
    neighbour = pod.start("/sleeper.wasm", name="neighbour")
    container = pod.create("/bin/sh", "-c", "true", image=BUSYBOX)
    with pytest.raises(grpc.RpcError) as raised:
        pod.cri.start(container)
    assert "/bin/sh" in str(raised.value)
    assert "not a WebAssembly module" in str(raised.value)
    assert "runc" in str(raised.value)
    assert pod.cri.container(neighbour).state == RUNNING


def test_ten_thousand_writes_a_second_all_arrive(pod: ModulePod) -> None:
    outcome = pod.run("/lines.wasm", "100", "10", "10000")
    assert outcome.code == 0
    assert outcome.lines == [f"line {number}" for number in range(10_000)]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
