"""Pods as their records tell of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import InvalidArgument, NotFound
from common.records import write_record
from sandboxctl.daemons import Daemon
from sandboxctl.pods import (
    UNREADABLE,
    ContainerFacts,
    find_container,
    find_pod,
    find_pod_or_container,
    list_pods,
)
from sandboxers.isolation import IsolationType
from sandboxers.records import RECORD_FILE, SandboxRecord
from sandboxers.runc.config import RuncConfig


def daemon(directory: Path) -> Daemon:
    directory.mkdir(exist_ok=True)
    return Daemon(IsolationType.RUNC, f"{directory}.yaml", RuncConfig(state_dir=str(directory)))


def record(daemon: Daemon, pod_id: str, created_at_ns: int = 1) -> None:
    directory = Path(daemon.config.state_dir, pod_id)
    directory.mkdir()
    pod = {"sandbox_id": pod_id, "name": "web", "namespace": "default"}
    write_record(f"{directory}/{RECORD_FILE}", SandboxRecord(pod, "running", created_at_ns))


def test_pods_of_all_daemons_are_listed_the_oldest_first(tmp_path: Path) -> None:
    one, other = daemon(tmp_path / "one"), daemon(tmp_path / "other")
    record(one, "b", 3)
    record(other, "a", 2)
    (tmp_path / "one/.removing-c").mkdir()
    assert [(pod.id, pod.name, pod.state, pod.daemon) for pod in list_pods([one, other])] == [
        ("a", "default/web", "running", other),
        ("b", "default/web", "running", one),
    ]


def test_a_damaged_record_hides_no_other_pod(tmp_path: Path) -> None:
    one = daemon(tmp_path / "one")
    record(one, "a")
    (tmp_path / "one/b").mkdir()
    (tmp_path / "one/b" / RECORD_FILE).write_text("{")
    pods = {pod.id: pod for pod in list_pods([one])}
    assert pods["a"].problem == "" and pods["b"].state == UNREADABLE
    assert f"one/b/{RECORD_FILE}" in pods["b"].problem


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "asleep"},
        {"created_at_ns": "1"},
        {"created_at_ns": 1 << 70},
        {"address": None},
        {"pod": []},
        {"pod": {}},
        {"pod": {"sandbox_id": 1}},
        {"pod": {"sandbox_id": "\x1b[2J"}},
    ],
)
def test_an_odd_record_is_told_of_in_one_line(tmp_path: Path, changes: dict[str, object]) -> None:
    one = daemon(tmp_path / "one")
    record(one, "a")
    path = tmp_path / "one/a" / RECORD_FILE
    envelope = json.loads(path.read_text())
    envelope["record"] |= changes
    path.write_text(json.dumps(envelope))
    (pod,) = list_pods([one])
    assert pod.state == UNREADABLE
    assert pod.problem.startswith(f"record {path} is damaged: ")
    assert "\n" not in pod.problem


@pytest.mark.parametrize("annotations", [None, [], {"io.kubernetes.cri.container-name": 7}])
def test_a_specification_that_is_none_gives_no_name(tmp_path: Path, annotations: object) -> None:
    one = daemon(tmp_path / "one")
    record(one, "pod")
    contain(one, "pod", "tasks", "box")
    (tmp_path / "one/pod/tasks/box/config.json").write_text(json.dumps({"annotations": annotations}))
    assert find_container([one], "box").name in ("", "7")


def test_the_beginning_of_an_id_is_enough_if_it_is_unique_on_the_node(tmp_path: Path) -> None:
    one, other = daemon(tmp_path / "one"), daemon(tmp_path / "other")
    record(one, "abc")
    record(other, "abd")
    record(other, "ab")
    assert find_pod([one, other], "abc").id == "abc"
    assert find_pod([one, other], "ab").id == "ab"
    with pytest.raises(InvalidArgument, match="not unique"):
        find_pod([one, other], "a")
    for unknown in "x", "":
        with pytest.raises(NotFound):
            find_pod([one, other], unknown)


def test_a_name_will_do_where_no_id_looks_like_it(tmp_path: Path) -> None:
    one = daemon(tmp_path / "one")
    record(one, "abc")
    contain(one, "abc", "tasks", "box")
    assert find_pod_or_container([one], "default/web").id == "abc"
    assert find_pod_or_container([one], "web").id == "abc", (
        "the pod, though its container is called so as well"
    )
    assert find_container([one], "web").id == "box"
    assert find_pod_or_container([one], "bo").id == "box"
    record(one, "web-2")
    assert find_pod_or_container([one], "web").id == "web-2", "an id comes first"
    record(one, "abd")
    with pytest.raises(InvalidArgument, match="not unique"):
        find_pod_or_container([one], "default/web")


def contain(daemon: Daemon, pod_id: str, parent: str, container_id: str, **facts: bool | int) -> None:
    directory = Path(daemon.config.state_dir, pod_id, parent, container_id)
    directory.mkdir(parents=True)
    record = ContainerFacts(container_id, str(directory), False, **facts)  # type: ignore[arg-type]
    write_record(f"{directory}/container.json", record)
    annotations = {"io.kubernetes.cri.container-name": "web", "io.kubernetes.cri.image-name": "example/web:1"}
    (directory / "config.json").write_text(json.dumps({"annotations": annotations}))


@pytest.mark.parametrize("parent", ["tasks", "containers"])
def test_containers_are_found_wherever_their_type_keeps_them(tmp_path: Path, parent: str) -> None:
    one = daemon(tmp_path / "one")
    record(one, "pod")
    contain(one, "pod", parent, "box", started=True)
    container = find_container([one], "bo")
    assert (container.name, container.image, container.state) == ("web", "example/web:1", "running")
    assert find_container([one], "pod").id == "box"


def test_a_pod_stands_for_its_only_container_alone(tmp_path: Path) -> None:
    one = daemon(tmp_path / "one")
    record(one, "pod")
    with pytest.raises(NotFound, match="no containers"):
        find_container([one], "pod")
    contain(one, "pod", "tasks", "box1")
    contain(one, "pod", "tasks", "box2")
    with pytest.raises(InvalidArgument, match="box1 web, box2 web"):
        find_container([one], "pod")


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({}, "created"),
        ({"started": True}, "running"),
        ({"started": True, "paused": True}, "paused"),
        ({"started": True, "exit_code": 0}, "exited"),
    ],
)
def test_a_containers_state_follows_from_its_record(
    tmp_path: Path, facts: dict[str, bool | int], state: str
) -> None:
    one = daemon(tmp_path / "one")
    record(one, "pod")
    contain(one, "pod", "tasks", "box", **facts)
    assert find_container([one], "box").state == state
