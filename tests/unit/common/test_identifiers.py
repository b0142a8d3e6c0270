"""Ids cannot leave their directory, and sockets inside it stay short enough."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgument
from common.identifiers import UNIX_PATH_MAX_BYTES, check_identifier, directory_name


@pytest.mark.parametrize("value", ["a", "0", "a" * 76, "f" * 64, "a..b", "a.b_c-d", "A-"])
def test_ordinary_ids_pass(value: str) -> None:
    assert check_identifier("sandbox", value) == value


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "../x", "a/b", "a" * 77, "-a", "_a", ".a", "a b", "a\n", "\na", "a\0", "ä", "a%2f", "٣"],
)
def test_other_ids_are_refused_with_the_rule(value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"exec id .* is not allowed: 1 to 76") as raised:
        check_identifier("exec", value)
    assert len(str(raised.value)) < 400


@given(st.text(max_size=90))
def test_what_passes_is_one_name_in_a_directory(value: str) -> None:
    try:
        check_identifier("container", value)
    except InvalidArgument:
        return
    assert os.path.normpath(f"/d/{value}") == f"/d/{value}"
    assert len(value.encode()) == len(value) <= 76


def test_a_short_id_is_its_own_directory() -> None:
    assert directory_name("/run/sandboxd/runc", "f" * 64, "task.sock") == "f" * 64


@given(st.integers(1, 59), st.integers(1, 76), st.integers(1, 12))
def test_sockets_inside_fit_wherever_a_hash_can_help(parent: int, identifier: int, member: int) -> None:
    directory, name = "/" + "p" * parent, directory_name("/" + "p" * parent, "a" * identifier, "m" * member)
    path = f"{directory}/{name}/{'m' * member}"
    assert len(path.encode()) <= UNIX_PATH_MAX_BYTES
    assert name == "a" * identifier or len(f"{directory}/{'a' * identifier}/{'m' * member}") > len(path)


def test_the_limit_is_what_the_kernel_takes(tmp_path: Path) -> None:
    path = str(tmp_path / ("s" * (UNIX_PATH_MAX_BYTES - len(str(tmp_path)) - 1)))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="too long"):
        sock.bind(path + "xx")


def test_hashes_tell_ids_apart() -> None:
    names = {directory_name("/" + "p" * 60, f"{'a' * 70}{n}", "task.sock") for n in range(100)}
    assert len(names) == 100
