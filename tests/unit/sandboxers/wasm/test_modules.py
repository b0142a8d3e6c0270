"""Which file is the module, and what it is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgument
from sandboxers.wasm import modules
from sandboxers.wasm.modules import Kind, kind_of, open_module

CORE = b"\0asm\x01\0\0\0"
COMPONENT = b"\0asm\x0d\0\x01\0"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    for name in ("app", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin/tool.wasm").write_bytes(CORE + b"tool")
    (tmp_path / "app/main.wasm").write_bytes(COMPONENT)
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def found(root: int, *args: str, cwd: str = "/", path: str = "") -> tuple[str, Kind]:
    fd, kind = open_module(root, args, cwd, {"PATH": path} if path else {})
    try:
        return os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2], kind
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("name", "cwd", "path", "file"),
    [
        ("/bin/tool.wasm", "/", "", "tool.wasm"),
        ("bin/tool.wasm", "/", "", "tool.wasm"),
        ("../bin/tool.wasm", "/app", "", "tool.wasm"),
        ("main.wasm", "/app", "/bin", "main.wasm"),
        ("tool.wasm", "/app", "/none:relative:/bin", "tool.wasm"),
    ],
)
def test_a_module_is_found_as_a_program_would_be(
    root: int, name: str, cwd: str, path: str, file: str
) -> None:
    assert found(root, name, cwd=cwd, path=path)[0] == file


def test_both_kinds_are_told_apart(root: int) -> None:
    assert found(root, "/bin/tool.wasm")[1] is Kind.CORE
    assert found(root, "/app/main.wasm")[1] is Kind.COMPONENT


@pytest.mark.parametrize("name", ["/none.wasm", "none.wasm", "/bin/tool.wasm/x", ""])
def test_what_is_not_there_is_named(root: int, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"no module|regular"):
        found(root, name)


def test_links_lead_to_files_of_the_same_root_only(root: int, tmp_path: Path) -> None:
    (tmp_path / "out.wasm").symlink_to("/../../../../etc/passwd")
    (tmp_path / "in.wasm").symlink_to("/bin/tool.wasm")
    (tmp_path / "loop.wasm").symlink_to("loop.wasm")
    assert found(root, "/in.wasm")[0] == "tool.wasm"
    with pytest.raises(InvalidArgument, match="no module"):
        found(root, "/out.wasm")
    with pytest.raises(InvalidArgument, match="link"):
        found(root, "/loop.wasm")


def test_only_regular_files_are_opened(root: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wasm")
    # It cannot be opened: that it is none must be seen without.
    os.mknod(tmp_path / "socket.wasm", stat.S_IFSOCK | 0o600)
    for name in ("/fifo.wasm", "/socket.wasm", "/bin"):
        with pytest.raises(InvalidArgument, match="regular"):
            found(root, name)


def test_a_file_that_is_too_large_is_refused(root: int, tmp_path: Path) -> None:
    with open(tmp_path / "large.wasm", "wb") as file:
        file.write(CORE)
        file.truncate(modules.MAX_MODULE_BYTES + 1)
    with pytest.raises(InvalidArgument, match="larger than 512 MiB"):
        found(root, "/large.wasm")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "empty"),
        (b"\0as", "not a WebAssembly module"),
        (b"\0asm", "it ends there"),
        (b"\0asm\x63\0\0\0", "version that is not known: 63000000"),
        (b"\x7fELF\x02\x01\x01\0", "native program.* type runc"),
        (b"#!/bin/s", "script.* type runc"),
        (b"(module)", "not a WebAssembly module.* type runc"),
    ],
)
def test_what_is_no_module_is_refused_with_a_reason(header: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        kind_of(header)


@given(st.binary(max_size=8))
def test_any_header_is_a_kind_or_refused(header: bytes) -> None:
    try:
        kind_of(header)
    except InvalidArgument:
        return
    assert header in (CORE, COMPONENT)
