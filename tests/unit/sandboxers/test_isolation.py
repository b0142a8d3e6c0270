"""Which type a configuration file selects."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import InvalidArgument, SandboxdError
from common.identifiers import UNIX_PATH_MAX_BYTES
from sandboxers.isolation import IsolationType, load_config, sandboxer_of
from sandboxers.records import STATE_DIR_MAX_BYTES, pod_directory_name
from sandboxers.registry import TASK_SOCKET
from sandboxers.runc.config import RuncConfig


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("text", ["type: runc\n", "state_dir: /run/x\n"])
def test_a_file_selects_its_type_and_runc_if_it_says_nothing(tmp_path: Path, text: str) -> None:
    kind, loaded = load_config(config(tmp_path, text))
    assert kind is IsolationType.RUNC
    assert isinstance(loaded, RuncConfig)


@pytest.mark.parametrize("name", ["qemux", "RUNC", "''"])
def test_an_unknown_type_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    path = config(tmp_path, f"type: {name}\n")
    with pytest.raises(InvalidArgument, match=r"type: .*runc") as raised:
        load_config(path)
    assert path in str(raised.value)


@pytest.mark.parametrize(
    "text", ["type: [runc]\n", "type: 5\n", "type: {a: b}\n", "- runc\n", "type: runc\nsokcet: /x\n", "{"]
)
def test_a_malformed_file_is_refused_naming_it(tmp_path: Path, text: str) -> None:
    path = config(tmp_path, text)
    with pytest.raises(SandboxdError) as raised:
        load_config(path)
    assert path in str(raised.value)


@pytest.mark.parametrize("kind", list(IsolationType))
def test_a_state_directory_below_which_no_socket_has_room_is_refused(
    tmp_path: Path, kind: IsolationType
) -> None:
    longest = "/" + "d" * (STATE_DIR_MAX_BYTES - 1)
    path = config(tmp_path, f"type: {kind.value}\nstate_dir: {longest}\n")
    _, loaded = load_config(path)
    for name in ("machine/vsock.backend", "tty1234567.sock", TASK_SOCKET):
        directory = f"{loaded.state_dir}/{pod_directory_name(loaded.state_dir, 'p' * 76)}"
        assert len(f"{directory}/{name}") <= UNIX_PATH_MAX_BYTES
    path = config(tmp_path, f"type: {kind.value}\nstate_dir: {longest}d\n")
    with pytest.raises(InvalidArgument, match=f"state_dir: must be at most {len(longest)} bytes"):
        load_config(path)
    path = config(tmp_path, f"type: {kind.value}\nsocket: /{'s' * UNIX_PATH_MAX_BYTES}\n")
    with pytest.raises(InvalidArgument, match=f"socket: must be at most {UNIX_PATH_MAX_BYTES} bytes"):
        load_config(path)


@pytest.mark.parametrize("kind", list(IsolationType))
def test_the_name_of_a_type_is_that_of_its_package_and_sandboxer(kind: IsolationType) -> None:
    sandboxer = sandboxer_of(kind)
    assert sandboxer.name == kind.value
    assert sandboxer.__module__ == f"sandboxers.{kind.value}.sandboxer"
