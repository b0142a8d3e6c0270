"""Which daemons a command line is about."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from common.errors import FailedPrecondition, InvalidArgument, NotFound
from sandboxctl.daemons import CONFIG_DIRECTORY_VARIABLE, find_daemons
from sandboxctl.main import main
from sandboxers.isolation import IsolationType
from sandboxers.lock import owning


def arguments(*files: str) -> argparse.Namespace:
    return argparse.Namespace(config_files=list(files) or None)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CONFIG_DIRECTORY_VARIABLE, str(tmp_path))
    return tmp_path


def write(directory: Path, name: str, text: str) -> str:
    path = directory / name
    path.write_text(f"{text}\n")
    return str(path)


def test_every_yaml_file_of_the_directory_is_a_daemon_and_nothing_else_is(directory: Path) -> None:
    write(directory, "wasm.yaml", "type: wasm")
    write(directory, "runc.yaml", "type: runc")
    write(directory, "runc.yaml.dpkg-old", "type: nonsense")
    assert [daemon.type for daemon in find_daemons(arguments())] == [IsolationType.RUNC, IsolationType.WASM]


def test_files_that_are_named_are_the_only_ones(directory: Path) -> None:
    write(directory, "wasm.yaml", "type: wasm")
    named = write(directory, "other", "type: qemu")
    assert [daemon.config_file for daemon in find_daemons(arguments(named))] == [named]


def test_a_node_without_configuration_says_what_to_give(directory: Path) -> None:
    with pytest.raises(NotFound, match=f"{directory}.*--config.*{CONFIG_DIRECTORY_VARIABLE}"):
        find_daemons(arguments())


def test_where_no_daemon_is_configured_there_are_no_pods(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (main(["ps", "-q"]), main(["gc", "--dry-run"])) == (0, 0)
    assert capsys.readouterr() == ("nothing is left over\n", "")
    assert main(["--config", f"{directory}/absent.yaml", "ps"]) == 1


def test_a_file_that_cannot_be_used_is_named(directory: Path) -> None:
    path = write(directory, "runc.yaml", "stat_dir: /run/x")
    with pytest.raises(InvalidArgument, match=f"{path}.*state_dir"):
        find_daemons(arguments())


def test_two_files_must_not_be_about_the_same_pods(directory: Path) -> None:
    write(directory, "a.yaml", "type: runc")
    write(directory, "b.yaml", "type: runc")
    with pytest.raises(FailedPrecondition, match=r"a\.yaml and .*b\.yaml"):
        find_daemons(arguments())


def test_a_daemon_runs_while_somebody_owns_its_state_directory(directory: Path, short_path: Path) -> None:
    write(directory, "runc.yaml", f"state_dir: {short_path}/state")
    (daemon,) = find_daemons(arguments())
    assert not daemon.is_running()
    (short_path / "state").mkdir()
    with owning(f"{short_path}/state"):
        assert daemon.is_running()
    assert not daemon.is_running()
