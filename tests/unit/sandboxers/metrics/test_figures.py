"""What a daemon counts, and what its text says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import Code
from common.log import get_logger, observe_events
from common.operations import Action, ignore_operations, note_step, operation
from common.ttrpc import Server
from sandboxers.garbage import Garbage
from sandboxers.metrics.figures import Figures
from sandboxers.pod_config import PodConfig
from tests.contract.fake_sandboxer import FakeSandbox
from tests.unit.sandboxers.conftest import Daemon

ROOT = Path(__file__).resolve().parents[4]
SAMPLE = re.compile(r'[a-z_]+\{type="fake"(,[a-z_]+="[^"]*")*\} [0-9.e+-]+')


@pytest.fixture
def figures() -> Iterator[Figures]:
    figures = Figures("fake", generation=3)
    figures.watch()
    yield figures
    ignore_operations(figures.note_operation)
    observe_events(None)
    Server.observe(None)


def samples(figures: Figures, daemon: Daemon, state_dir: Path) -> dict[str, float]:
    garbage = Garbage(daemon.registry, str(state_dir), "", 0, 0)
    lines = figures.text(daemon.registry, garbage).splitlines()
    found = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {
        name.replace('type="fake",', "").replace('{type="fake"}', ""): float(value) for name, value in found
    }


def test_every_line_is_a_comment_or_a_sample_with_the_type(
    figures: Figures, daemon: Daemon, state_dir: Path
) -> None:
    with operation(Action.SANDBOX_START, "pod"):
        note_step("sandbox.starting")
    figures.note_call("a.Service", "Method", Code.OK, 0.1)
    garbage = Garbage(daemon.registry, str(state_dir), "", 0, 0)
    text = figures.text(daemon.registry, garbage)
    assert text.endswith("\n")
    names = []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            names.append(line.split()[2])
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), line
            assert line.startswith(names[-1]), "each sample follows the type of its family"
    assert len(names) == len(set(names)) > 15
    described = (ROOT / "docs/observability.md").read_text()
    assert [name for name in names if f"`{name}`" not in described] == []


async def test_pods_and_containers_by_state(
    figures: Figures, daemon: Daemon, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    containers = {
        "containers": {"a": {"state": "running"}, "b": {"state": "running"}, "c": {"state": "stopped"}}
    }
    monkeypatch.setattr(FakeSandbox, "details", lambda _: containers)
    for number in range(3):
        await daemon.registry.create(PodConfig(sandbox_id=f"pod{number}", netns_path="/run/netns/x"))
    await daemon.registry.start("pod0")
    seen = samples(figures, daemon, state_dir)
    assert (seen['sandboxd_sandboxes{state="running"}'], seen['sandboxd_sandboxes{state="created"}']) == (
        1,
        2,
    )
    assert (seen['sandboxd_containers{state="running"}'], seen['sandboxd_containers{state="stopped"}']) == (
        6,
        3,
    )


def test_operations_by_outcome_and_their_steps_each_from_the_one_before(
    figures: Figures, daemon: Daemon, state_dir: Path
) -> None:
    with operation(Action.SANDBOX_START, "pod"):
        note_step("sandbox.starting")
        note_step("sandbox.started")
    with pytest.raises(KeyError), operation(Action.SANDBOX_START, "pod"):
        raise KeyError
    seen = samples(figures, daemon, state_dir)
    assert seen['sandboxd_operation_seconds_count{operation="sandbox.start",outcome="ok"}'] == 1
    assert seen['sandboxd_operation_seconds_count{operation="sandbox.start",outcome="error"}'] == 1
    steps = [
        seen[f'sandboxd_step_seconds_sum{{operation="sandbox.start",step="sandbox.{step}"}}']
        for step in ("starting", "started")
    ]
    whole = seen['sandboxd_operation_seconds_sum{operation="sandbox.start",outcome="ok"}']
    assert 0 < sum(steps) <= whole


def test_calls_by_code_and_their_latency_but_for_those_that_are_parked(
    figures: Figures, daemon: Daemon, state_dir: Path
) -> None:
    figures.note_call("Task", "State", Code.OK, 0.001)
    figures.note_call("Task", "State", Code.NOT_FOUND, 0.001)
    figures.note_call("Task", "Wait", Code.OK, 3600)
    seen = samples(figures, daemon, state_dir)
    assert seen['sandboxd_rpc_total{service="Task",method="State",code="5"}'] == 1
    assert seen['sandboxd_rpc_seconds_count{service="Task",method="State"}'] == 2
    assert seen['sandboxd_rpc_total{service="Task",method="Wait",code="0"}'] == 1
    assert not [name for name in seen if name.startswith("sandboxd_rpc_seconds") and "Wait" in name]


def test_exits_kills_for_memory_and_all_other_events(
    figures: Figures, daemon: Daemon, state_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = get_logger()
    log.info("container.exited", exit_code=137, pid=1)
    log.info("container.oom", kills=2)
    log.info("container.oom")
    log.warning("guest.condemned")
    seen = samples(figures, daemon, state_dir)
    assert seen['sandboxd_container_exits_total{code="137"}'] == 1
    assert seen["sandboxd_oom_kills_total"] == 3
    assert seen['sandboxd_events_total{level="warning",event="guest.condemned"}'] == 1


def test_the_daemon_itself(figures: Figures, daemon: Daemon, state_dir: Path) -> None:
    seen = samples(figures, daemon, state_dir)
    assert seen["sandboxd_generation"] == 3
    assert 1 << 20 < seen["process_proportional_memory_bytes"] <= seen["process_resident_memory_bytes"]
    assert 2 < seen["process_open_fds"] < seen["process_max_fds"]
    assert seen["process_threads"] >= 1
    assert seen["process_cpu_seconds_total"] > 0
    assert seen['sandboxd_garbage_removed_total{kind="sandbox"}'] == 0
