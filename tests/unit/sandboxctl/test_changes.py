"""What has happened between two looks at the records."""

from __future__ import annotations

from sandboxctl.changes import differences
from sandboxctl.daemons import Daemon
from sandboxctl.pods import Container, ContainerFacts, Pod
from sandboxers.isolation import IsolationType
from sandboxers.records import SandboxRecord
from sandboxers.runc.config import RuncConfig

DAEMON = Daemon(IsolationType.RUNC, "runc.yaml", RuncConfig())


def pod(state: str, *containers: ContainerFacts, exit_code: int = -1) -> dict[str, Pod]:
    record = SandboxRecord({"sandbox_id": "p"}, state, 1, exit_code=exit_code)
    made = Pod(DAEMON, "/run/p", record)
    made.containers.extend(Container(made, facts) for facts in containers)
    return {"/run/p": made}


def facts(**changes: bool | int) -> ContainerFacts:
    return ContainerFacts("c", "/bundle", False, **changes)  # type: ignore[arg-type]


def told(before: dict[str, Pod], after: dict[str, Pod]) -> list[tuple[str, int | None]]:
    return [(change.event, change.exit_code) for change in differences(before, after)]


def test_nothing_is_told_where_nothing_happened() -> None:
    running = pod("running", facts(started=True))
    assert told(running, pod("running", facts(started=True))) == []


def test_a_pods_beginning_comes_before_its_containers_and_its_end_after_them() -> None:
    running, ended = pod("running", facts(started=True)), pod("stopped", exit_code=0)
    assert told({}, running) == [
        ("pod.created", None),
        ("pod.ready", None),
        ("container.created", None),
        ("container.started", None),
    ]
    assert told(running, ended) == [("container.removed", None), ("pod.stopped", 0)]
    assert told(ended, {}) == [("pod.removed", None)]


def test_what_came_and_went_unseen_is_told_in_its_order() -> None:
    steps = told(pod("running"), pod("running", facts(started=True, exit_code=3, oom_kills=1)))
    assert steps == [
        ("container.created", None),
        ("container.started", None),
        ("container.oom", None),
        ("container.exited", 3),
    ]


def test_an_exit_has_the_time_at_which_it_was() -> None:
    before, after = (
        pod("running", facts(started=True)),
        pod("running", facts(started=True, exit_code=0, exited_at_ns=7)),
    )
    assert [change.at_ns for change in differences(before, after)] == [7]


def test_pauses_are_told() -> None:
    running, paused = pod("running", facts(started=True)), pod("running", facts(started=True, paused=True))
    assert told(running, paused) == [("container.paused", None)]
    assert told(paused, running) == [("container.resumed", None)]


def test_a_pod_whose_record_cannot_be_read_any_more_is_not_told_of_as_removed() -> None:
    damaged = {"/run/p": Pod(DAEMON, "/run/p", None, problem="damaged")}
    assert ("pod.removed", None) not in told(pod("running"), damaged)
