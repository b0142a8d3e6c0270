"""What is said of a pod that waits, runs, has failed or is gone."""

from __future__ import annotations

from typing import Any

import pytest

from common.failpoints import Failpoint
from common.operations import Action
from sandboxctl.daemons import Daemon
from sandboxctl.explanation import ACTIONS, Evidence, explain, waits_for
from sandboxctl.pods import Pod
from sandboxers.isolation import IsolationType
from sandboxers.records import SandboxRecord
from sandboxers.runc.config import RuncConfig
from sandboxers.states import SandboxState

HEADS = ("sandbox.", "container.", "exec.")
# Behind these an operation is over, or somebody else's.
LAST = {
    "sandbox.recorded", "sandbox.started", "sandbox.stopped", "sandbox.removed", "container.created",
    "container.started", "container.deleted", "container.signalled", "container.exited", "container.exit_recorded",
    "exec.recorded", "exec.started", "exec.deleted", "exec.exited", "exec.exit_recorded",
}  # fmt: skip


def operation(action: Action, *steps: str, **fields: Any) -> dict[str, Any]:
    return {
        "action": action.value,
        "container_id": "",
        "exec_id": "",
        "age_us": 12_300_000,
        "steps": [[step, 1000 * number] for number, step in enumerate(steps)],
        "error": "",
        **fields,
    }


def evidence(live: dict[str, Any] | None = None, **fields: Any) -> Evidence:
    daemon = Daemon(IsolationType.RUNC, "runc.yaml", RuncConfig())
    record = SandboxRecord({"sandbox_id": "pod"}, "running", 1)
    pod = Pod(daemon, "/run/pod", record)
    return Evidence(**{"pod": pod, "starts": [], "live": live, "problem": "", "in_machine": False, **fields})


def said(live: dict[str, Any] | None = None, **fields: Any) -> str:
    return " ".join(explain(evidence(live, **fields)))


@pytest.mark.parametrize("step", [step for step in Failpoint if step.startswith(HEADS) and step not in LAST])
def test_behind_every_step_it_is_known_what_comes(step: Failpoint) -> None:
    assert "what comes after" not in waits_for(operation(Action.SANDBOX_START, step), in_machine=False)


def test_every_action_has_words() -> None:
    assert set(ACTIONS) == set(Action)


def test_a_start_in_progress_waits_for_its_next_step() -> None:
    guest = operation(Action.SANDBOX_START, "sandbox.starting", "sandbox.machine_started")
    text = said({"state": "being started", "operations": [guest]}, in_machine=True)
    assert text.startswith(
        "Its engine has asked to start the pod, 12.3 s ago. That waits for the guest to boot"
    )
    assert "sandboxctl console" in text


def test_the_same_step_is_followed_by_another_one_in_a_machine() -> None:
    create = operation(Action.CONTAINER_CREATE, "container.streams_opened", container_id="c" * 64)
    live = {"state": "running", "operations": [create]}
    assert f"create container {'c' * 13}, 12.3 s ago. That waits for the runtime to make it" in said(live)
    assert "the guest's agent to make it" in said(live, in_machine=True)


def test_a_call_that_has_done_nothing_waits_for_another_one() -> None:
    start = operation(Action.SANDBOX_START, "sandbox.starting")
    stop = operation(Action.SANDBOX_STOP, age_us=100)
    text = said({"state": "being started", "operations": [start, stop]})
    assert "asked to stop the pod, 0.0 s ago. That waits for an earlier call for this pod to end." in text


@pytest.mark.parametrize("state", [state for state in SandboxState if state is not SandboxState.READY])
def test_every_state_has_words(state: SandboxState) -> None:
    if state in (SandboxState.STOPPING, SandboxState.REMOVING):  # there is an operation then
        return
    assert said({"state": state.value, "operations": []}) != f"It is {state.value}."


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("created", "is made, and waits for its engine to start it"),
        ("being started", "is being started"),
        ("paused", "is paused, until its engine resumes it"),
        ("stopped", "has ended with exit code 3"),
    ],
)
def test_containers_that_do_not_run_are_named(state: str, words: str) -> None:
    containers = {"a": {"state": "running"}, "b": {"state": state, "exit_code": 3}}
    text = said({"state": "running", "operations": [], "containers": containers})
    assert f"Container b {words}" in text
    assert "Container a" not in text


def test_a_pod_that_runs_waits_for_nothing_and_one_without_containers_for_its_engine() -> None:
    live = {"state": "running", "operations": [], "containers": {"a": {"state": "running"}}}
    assert said(live) == "It waits for nothing: all its containers run."
    assert "its engine has asked for no container" in said({**live, "containers": {}})


def test_an_exec_in_progress_hides_no_container_that_waits() -> None:
    probe = operation(Action.EXEC_START, exec_id="e")
    live = {"state": "running", "operations": [probe], "containers": {"a": {"state": "created"}}}
    assert "asked to start exec e" in said(live)
    assert "Container a is made" in said(live)


def test_a_start_that_failed_is_told_with_what_it_had_come_to() -> None:
    steps = ("sandbox.starting", "sandbox.namespaces_made", "sandbox.removing", "sandbox.destroyed")
    failed = operation(Action.SANDBOX_START, *steps, error="no space left\x1b[2J")
    text = said(pod=None, starts=[operation(Action.SANDBOX_CREATE), failed])
    assert "failed after 12.3 s" in text
    assert "come to wait for the pod's files (hosts, resolv.conf, hostname) to be written" in text
    assert "no space left?[2J" in text
    assert said(pod=None, starts=[operation(Action.SANDBOX_START)]) == "It was removed."


def test_where_nobody_can_be_asked_that_is_said() -> None:
    assert said(None, problem="Its daemon does not run.") == "Its daemon does not run."
    unreadable = Pod(evidence().pod.daemon, "/run/pod", None, problem="version 9")  # type: ignore[union-attr]
    assert "left as it is: version 9" in said(None, pod=unreadable)
