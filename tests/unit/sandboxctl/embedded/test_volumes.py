"""Parts of volumes: containers may have put anything there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import InvalidArgument
from sandboxctl.embedded.volumes import open_part


def opened(root: Path, part: str, *, make: bool = False) -> str:
    """Where the part that is opened really is."""
    fd = open_part(str(root), part, make=make)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_a_directory_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    assert opened(tmp_path, "a/./b/") == f"{tmp_path}/a/b"
    assert opened(tmp_path, "a/file") == f"{tmp_path}/a/file"
    with pytest.raises(FileNotFoundError):
        opened(tmp_path, "a/c")


def test_what_is_missing_is_made_for_all_to_write_to(tmp_path: Path) -> None:
    assert opened(tmp_path, "a/b", make=True) == f"{tmp_path}/a/b"
    assert [(tmp_path / path).stat().st_mode & 0o777 for path in ("a", "a/b")] == [0o777, 0o777]
    (tmp_path / "a").chmod(0o700)
    opened(tmp_path, "a/b", make=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700, "what is there is left alone"


@pytest.mark.parametrize("make", [False, True])
@pytest.mark.parametrize("part", ["link", "link/inner", "inside/link", "..", "inside/../../x"])
def test_no_link_is_followed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, part: str, make: bool
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "inner").mkdir()
    (tmp_path / "inside").mkdir()
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "inside/link").symlink_to("..")
    with pytest.raises(InvalidArgument, match="which is a link"):
        opened(tmp_path, part, make=make)
    assert os.listdir(outside) == ["inner"]
