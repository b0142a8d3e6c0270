"""What systemd, alone or above our supervisor, does with descriptors: all that the daemon's life after death needs."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.node.inside import depositor as program
from tests.node.inside.conftest import COPY
from tests.node.inside.systemd import READY_LIMIT_S, SUPERVISED, Service, systemctl

UNIT = "sandboxd@depositor.service"
# After supervise.conf, if that is installed.
DROP_IN = Path(f"/etc/systemd/system/{UNIT}.d/zz-program.conf")
MANY = 3000

Groups = dict[str, list[str]]


class Depositor(Service):
    """The unit as it is shipped, with another program in it."""

    def __init__(self, socket_path: Path) -> None:
        super().__init__(UNIT, socket_path)
        self._address = str(socket_path)

    def configure(self, *settings: str) -> None:
        """Let the unit be as it is shipped, but for its program and these settings."""
        flags = "--supervise " if SUPERVISED else ""
        command = f"{sys.executable} {program.__file__} {flags}--config {self._address}"
        lines = [
            "[Service]",
            f"Environment=PYTHONPATH={COPY}",
            "ExecStart=",
            f"ExecStart={command}",
            *settings,
        ]
        DROP_IN.parent.mkdir(exist_ok=True)
        DROP_IN.write_text("\n".join(lines) + "\n")
        systemctl("daemon-reload")

    def ask(self, do: str, **arguments: Any) -> Any:
        """Ask the program for something; None if it does not live to answer."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(READY_LIMIT_S)
            client.connect(self._address)
            client.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            with client.makefile() as answers:
                answer = answers.readline()
        return json.loads(answer) if answer else None

    def put(self, groups: Mapping[str, Sequence[str]], kind: str = "file") -> None:
        """Let descriptors be kept, and wait until they are."""
        self.ask("put", groups=groups, kind=kind)
        assert self.ask("barrier")

    def handed(self) -> Groups:
        """What the program that runs was handed when it started."""
        answer: Groups = self.ask("handed")
        return answer

    def handed_after(self, act: Callable[[], object]) -> Groups:
        """Do what ends the program, and return what the next one is handed."""
        self.replace(act)
        return self.handed()


@pytest.fixture(scope="module")
def running(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Depositor]:
    configuration = Path("/etc/sandboxd/depositor.yaml")
    configuration.touch()
    depositor = Depositor(tmp_path_factory.mktemp("depositor") / "socket")
    depositor.configure()
    depositor("enable", "--now")
    yield depositor
    depositor("stop")
    depositor("clean", "--what=fdstore")
    depositor("disable")
    DROP_IN.unlink()
    DROP_IN.parent.rmdir()
    configuration.unlink()
    systemctl("daemon-reload")


@pytest.fixture
def depositor(running: Depositor) -> Iterator[Depositor]:
    """The program, which has deposited nothing yet."""
    own = running.stored
    yield running
    running.ask("remove all")
    assert running.ask("barrier")
    assert running.stored == own


WAYS: dict[str, Callable[[Depositor], object]] = {
    "restart": lambda depositor: depositor("restart"),
    "kill -9": lambda depositor: depositor("kill", "--kill-whom=main", "--signal=KILL"),
    "stop and start": lambda depositor: depositor.stop_and_start(),
    "failure": lambda depositor: depositor.ask("exit", code=3),
    "success": lambda depositor: depositor.ask("exit", code=0),
}
# A supervisor does not end with its daemon.
WAYS_HERE = [way for way in WAYS if not SUPERVISED or way not in ("failure", "success")]


@pytest.mark.parametrize("way", WAYS_HERE)
def test_every_end_leaves_the_next_one_all_groups_under_their_names(depositor: Depositor, way: str) -> None:
    groups = {"p1": ["a"], "t2": ["b", "c", "d"], "c3": [str(n) for n in range(40)]}
    depositor.put(groups)
    handed = depositor.handed_after(lambda: WAYS[way](depositor))
    assert handed == {name: sorted(texts) for name, texts in groups.items()}


def test_what_has_hung_up_is_kept_all_the_same(depositor: Depositor) -> None:
    kinds = ("hung-up pipe", "hung-up connection", "process that has ended")
    for number, kind in enumerate(kinds):
        depositor.put({f"c{number}": [kind]}, kind)
    assert depositor.handed_after(lambda: depositor("restart")) == {
        f"c{number}": [kind] for number, kind in enumerate(kinds)
    }


def test_groups_grow_and_are_removed_as_a_whole_and_what_is_taken_stays_kept(depositor: Depositor) -> None:
    depositor.put({"p1": ["a", "b"], "p2": ["c"], "p10": ["d"]})
    depositor.put({"p1": ["e"]})
    depositor.ask("remove", names=["p2", "unknown"])
    assert depositor.handed_after(lambda: depositor("restart")) == {"p1": ["a", "b", "e"], "p10": ["d"]}
    depositor.ask("remove", names=["p1"])
    depositor.put({"p1": ["f"]})
    assert depositor.handed_after(lambda: depositor("restart")) == {"p1": ["f"], "p10": ["d"]}


def test_messages_of_one_that_has_died_count_in_their_order(depositor: Depositor) -> None:
    groups = {f"c{number}": [str(number)] for number in range(100)}
    handed = depositor.handed_after(lambda: depositor.ask("put", groups=groups, then_die=True))
    assert handed == groups


def test_after_a_barrier_all_that_was_said_before_is_done(depositor: Depositor) -> None:
    before = depositor.stored
    depositor.ask("put", groups={f"c{number}": ["x"] for number in range(100)})
    depositor.ask("remove", names=["c0"])
    assert depositor.ask("barrier")
    assert depositor.stored == before + 99


def test_systemd_keeps_an_open_file_under_its_first_name_alone(depositor: Depositor) -> None:
    depositor.ask("share", names=["p1", "p2"])
    assert depositor.handed_after(lambda: depositor("restart")) == {"p1": ["shared"]}


def test_thousands_are_all_handed_over_and_each_is_what_its_name_says(depositor: Depositor) -> None:
    groups: Groups = {}
    count = 0
    while count < MANY:
        name = f"c{count:x}"
        groups[name] = [f"{name} {number}" for number in range(min(1 + count % 7, MANY - count))]
        count += len(groups[name])
    before, began_s = depositor.stored, time.monotonic()
    depositor.put(groups)
    stored_s = time.monotonic()
    assert depositor.stored == before + MANY
    handed = depositor.handed_after(lambda: depositor("restart"))
    print(
        f"{MANY} descriptors: stored in {stored_s - began_s:.1f} s, back in {time.monotonic() - stored_s:.1f} s"
    )
    assert handed == groups
    assert depositor.handed_after(depositor.kill_daemon) == groups


def test_more_than_the_unit_allows_are_not_kept_and_nothing_else_suffers(depositor: Depositor) -> None:
    depositor.put({"p1": ["a"]})
    depositor.configure("FileDescriptorStoreMax=20")
    try:
        depositor.replace(lambda: depositor("restart"))
        depositor.put({f"c{number}": ["x"] for number in range(30)})
        assert depositor.stored == 20
        assert depositor.handed_after(lambda: depositor("restart"))["p1"] == ["a"]
    finally:
        depositor.configure()


def test_a_systemd_that_cannot_preserve_them_keeps_them_over_a_restart_alone(depositor: Depositor) -> None:
    # What the versions before 254 do, which do not know the setting.
    depositor.configure("FileDescriptorStorePreserve=restart")
    try:
        depositor.put({"p1": ["a"]})
        assert depositor.handed_after(lambda: depositor("restart")) == {"p1": ["a"]}
        assert depositor.handed_after(depositor.stop_and_start) == {}
    finally:
        depositor.configure()


def test_a_unit_that_is_not_enabled_keeps_nothing_over_stop_and_start(depositor: Depositor) -> None:
    # What nothing refers to is forgotten when it has stopped, with all that it has (systemd.unit(5), CollectMode=).
    depositor("disable")
    try:
        depositor.put({"p1": ["a"]})
        assert depositor.handed_after(lambda: depositor("restart")) == {"p1": ["a"]}
        assert depositor.handed_after(depositor.stop_and_start) == {}
    finally:
        depositor("enable")


def test_clean_drops_what_a_stopped_unit_has_kept(depositor: Depositor) -> None:
    depositor.put({"p1": ["a"]})
    depositor("stop")
    assert depositor.stored > 0
    depositor("clean", "--what=fdstore")
    assert depositor.stored == 0
    depositor("start")
    assert depositor.handed() == {}
