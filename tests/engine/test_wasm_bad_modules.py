"""Modules that are broken or want too much: each fails with a reason, and nobody else notices."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto.gen.runtime.v1 import api_pb2 as api
from tests.engine.cri import RUNNING, Cri
from tests.engine.engine import Engine
from tests.engine.handlers import WASM
from tests.engine.images import HUGE_MODULE
from tests.engine.module_pods import ModulePod
from tests.engine.namespaces import wait_until

HANDLER = WASM
TRAPPED = 134


@pytest.fixture
def neighbour(cri: Cri, tmp_path: Path) -> Iterator[ModulePod]:
    """A pod that goes on as if nothing had happened, whatever the test does in another one."""
    pod = ModulePod(cri, tmp_path)
    container = pod.start("/lines.wasm", "1", "50", "0")
    pod.wait_for_line("line 1")
    yield pod
    assert cri.container(container).state == RUNNING
    pod.wait_for_line(f"line {len(pod.lines()) + 1}")
    assert cri.exec(container, ["/say.wasm", "out", "err", "3"]).exit_code == 3
    # Whoever forks modules does it still.
    assert pod.run("/hello.wasm", name="afterwards").lines == ["hello from wasm"]


@pytest.fixture
def pod(cri: Cri, tmp_path: Path, neighbour: ModulePod) -> ModulePod:
    return ModulePod(cri, tmp_path)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("/text.wasm", "not a WebAssembly module"),
        ("/etc/passwd", "not a WebAssembly module"),
        ("/empty.wasm", "empty"),
        ("/truncated.wasm", "not a valid WebAssembly module"),
        ("/unknown_world.wasm", "wasi:cli/run"),
        ("/tmp", "not a regular file"),
        ("/no/such.wasm", "no such file"),
        ("/escape", "not a WebAssembly module"),
    ],
)
def test_what_is_no_command_is_refused_at_the_start_with_a_reason(
    pod: ModulePod, file: str, reason: str
) -> None:
    container = pod.create(file)
    with pytest.raises(grpc.RpcError) as raised:
        pod.cri.start(container)
    assert file in str(raised.value)
    assert reason in str(raised.value)
    running = pod.start("/sleeper.wasm", name="running")
    with pytest.raises(grpc.RpcError) as raised:
        pod.cri.exec(running, [file])
    assert reason in str(raised.value)
    assert pod.cri.container(running).state == RUNNING


def test_imports_that_nobody_offers_are_named(pod: ModulePod) -> None:
    container = pod.create("/unknown_imports.wasm")
    with pytest.raises(grpc.RpcError) as raised:
        pod.cri.start(container)
    for name in ("launch_rockets", "fd_teleport"):
        assert name in str(raised.value)


def test_a_trap_has_a_code_of_its_own_and_a_backtrace(pod: ModulePod) -> None:
    outcome = pod.run("/trap.wasm")
    assert outcome.code == TRAPPED
    assert any("unreachable" in line for line in outcome.lines)
    assert any("step_into_the_trap" in line for line in outcome.lines)


def test_a_stack_overflow_is_a_trap(pod: ModulePod) -> None:
    outcome = pod.run("/recurse.wasm")
    assert outcome.code == TRAPPED
    assert any("stack" in line for line in outcome.lines)
    assert any("descend" in line for line in outcome.lines)


def test_an_endless_loop_is_ended_by_a_stop(pod: ModulePod) -> None:
    container = pod.start("/spin.wasm")
    wait_until(
        lambda: pod.cri.stats(container).cpu.usage_core_nano_seconds.value > 0, timeout_s=20, what="CPU time"
    )
    pod.cri.stop_container(container, grace_s=5)
    assert pod.cri.container(container).exit_code == 143


def test_memory_ends_at_the_limit(pod: ModulePod) -> None:
    outcome = pod.run("/grow.wasm", resources=api.LinuxContainerResources(memory_limit_in_bytes=48 << 20))
    assert (outcome.code, outcome.reason) in ((3, "Error"), (137, "OOMKilled"))


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/../../etc/passwd", "/escape", "/proc/1/root/etc/passwd"]
)
def test_no_path_leads_out_of_the_root(pod: ModulePod, path: str) -> None:
    outside = Path("/etc/passwd").read_text().splitlines()
    outcome = pod.run("/files.wasm", "read", path)
    assert outcome.code != 0 or outcome.lines != outside
    inside = pod.run("/files.wasm", "read", "/etc/passwd", name="inside")
    assert inside.code == 0
    if outcome.code == 0:
        assert outcome.lines == inside.lines


@pytest.mark.timeout(180)
def test_a_huge_module_runs_like_a_small_one(engine: Engine, pod: ModulePod) -> None:
    before_kib = _resident_kib(engine.daemon_pid)
    container = pod.start("/huge.wasm", image=HUGE_MODULE)
    assert pod.outcome(container, timeout_s=60) == (0, ["hello from wasm"], "Completed")
    # The daemon has never had it.
    assert _resident_kib(engine.daemon_pid) - before_kib < 20 << 10


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
