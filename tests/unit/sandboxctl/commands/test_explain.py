"""Which pod is explained, and how its timeline is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.records import write_record
from sandboxctl.main import main
from sandboxers.records import RECORD_FILE, SandboxRecord
from sandboxers.start_log import FILE

BEGUN_NS = 1_700_000_000 * 10**9


class Node:
    """A daemon's state directory, with a log of starts and records; no daemon runs."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.state.mkdir()
        self.config = directory / "runc.yaml"
        self.config.write_text(f"type: runc\nstate_dir: {self.state}\nsocket: {directory}/s\n")

    def start(
        self, sandbox_id: str, action: str, at_us: int, took_us: int, *steps: Any, **fields: Any
    ) -> None:
        start = {
            "action": action,
            "sandbox_id": sandbox_id,
            "container_id": "",
            "exec_id": "",
            "pod": "",
            "began_at_ns": BEGUN_NS + at_us * 1000,
            "age_us": took_us,
            "steps": steps,
            "error": "",
            **fields,
        }
        with (self.state / FILE).open("a") as file:
            file.write(json.dumps(start) + "\n")

    def record(self, sandbox_id: str, name: str) -> None:
        (self.state / sandbox_id).mkdir()
        pod = {"sandbox_id": sandbox_id, "name": name, "namespace": "default"}
        write_record(f"{self.state}/{sandbox_id}/{RECORD_FILE}", SandboxRecord(pod, "running", 1))

    def explain(self, *arguments: str) -> int:
        return main(["--config", str(self.config), "explain", *arguments])


@pytest.fixture
def node(short_path: Path) -> Node:
    node = Node(short_path)
    node.start("abc1", "sandbox.create", 0, 600, ["sandbox.recorded", 500], pod="default/web")
    node.start(
        "abc1", "sandbox.start", 130_600, 22_000, ["sandbox.starting", 300], ["sandbox.shm_made", 2300]
    )
    node.start(
        "abc1",
        "container.create",
        1_200_000,
        9_000,
        ["machine.running", 100],
        container_id="c" * 64,
        error="x",
    )
    return node


def test_the_timeline_is_one_with_what_the_engine_did_in_between(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.record("abc1", "web")
    assert node.explain("abc") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "default/web  abc1  runc  running"
    assert [line.split(maxsplit=2) for line in lines[2:14]] == [
        ["at", "took", "what"],
        ["0.0", "0.6", "create the pod"],
        ["0.5", "0.5", "recorded"],
        ["0.6", "130.0", "- the engine, between its calls"],
        ["130.6", "22.0", "start the pod"],
        ["130.9", "0.3", "starting"],
        ["132.9", "2.0", "shm made"],
        ["152.6", "1047.4", "- the engine, between its calls"],
        ["1200.0", "9.0", "create container ccccccccccccc"],
        ["1200.1", "0.1", "machine running"],
        ["1209.0", "8.9", "FAILED"],
        [],
    ]
    assert "systemctl start sandboxd@runc" in lines[-1]
    assert max(map(len, lines[:-1])) <= 80


@pytest.mark.parametrize("wanted", ["abc1", "ab", "default/web", "web"])
def test_a_pod_that_is_gone_is_known_by_id_and_name(
    node: Node, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.explain(wanted) == 0
    out = capsys.readouterr().out
    assert out.startswith("default/web  abc1  runc  gone\n")


def test_of_several_attempts_the_last_one_is_shown_and_one_on_record_before_all(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.start("f00d", "sandbox.create", 9_000_000, 500, pod="default/web")
    node.start("f00d", "sandbox.start", 9_001_000, 500, ["sandbox.starting", 100], error="no network")
    assert node.explain("web") == 0
    out = capsys.readouterr().out
    assert out.startswith("default/web  f00d  runc  gone\n")
    assert "failed" in out and "no network" in out
    node.record("abc1", "web")
    assert node.explain("web") == 0
    assert capsys.readouterr().out.startswith("default/web  abc1  runc  running\n")


def test_programs_get_json(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert node.explain("abc1", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["id"], answer["name"], answer["state"], answer["type"]) == (
        "abc1",
        "default/web",
        "gone",
        "runc",
    )
    assert [start["action"] for start in answer["starts"]] == [
        "sandbox.create",
        "sandbox.start",
        "container.create",
    ]
    assert answer["explanation"] == ["It was removed."]


@pytest.mark.parametrize(
    ("wanted", "says"), [("x", "nor had one lately"), ("", "no pod has"), ("abc", "not unique")]
)
def test_what_names_no_pod_or_several_is_refused(
    node: Node, wanted: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node.start("abc2", "sandbox.create", 0, 1)
    assert node.explain(wanted) == 1
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert says in error
