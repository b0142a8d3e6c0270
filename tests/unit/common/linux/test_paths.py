"""Paths prepared by someone else cannot lead out of their root."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from common.linux.paths import open_in_root, open_without_symlinks


def opened(root: Path, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> str:
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = open_in_root(root_fd, path, flags, mode)
    finally:
        os.close(root_fd)
    try:
        assert not os.get_inheritable(fd)
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    return root


@pytest.mark.parametrize("link", ["/etc/passwd", "../../../etc/passwd", "/../../etc/passwd"])
def test_links_and_dots_are_resolved_as_if_the_root_were_the_machine(root: Path, link: str) -> None:
    (root / "link").symlink_to(link)
    assert opened(root, "link") == str(root / "etc/passwd")
    assert opened(root, link) == str(root / "etc/passwd")


def test_a_link_to_a_file_outside_does_not_reach_it(root: Path) -> None:
    (root / "link").symlink_to("../secret")
    with pytest.raises(FileNotFoundError) as caught:
        opened(root, "link")
    assert caught.value.filename == "link"


def test_a_magic_link_is_refused() -> None:
    with pytest.raises(OSError) as caught:
        opened(Path("/"), "proc/self/root/etc")
    assert caught.value.errno == errno.ELOOP


def test_a_file_is_created_with_the_mode_that_was_asked_for(root: Path) -> None:
    opened(root, "new", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    assert (root / "new").stat().st_mode & 0o777 == 0o600


def test_a_path_with_a_symbolic_link_anywhere_is_refused(root: Path) -> None:
    (root / "dir").symlink_to("etc")
    with pytest.raises(OSError) as caught:
        open_without_symlinks(str(root / "dir/passwd"), os.O_RDONLY)
    assert caught.value.errno == errno.ELOOP
    os.close(open_without_symlinks(str(root / "etc/passwd"), os.O_RDONLY))


def test_a_null_byte_is_an_error_and_not_the_end_of_the_path(root: Path) -> None:
    with pytest.raises(ValueError, match="null byte"):
        opened(root, "etc/passwd\0x")
