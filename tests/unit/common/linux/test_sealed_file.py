"""Files that nobody can change any more."""

import os

import pytest

from common.linux.sealed_file import sealed_file


def test_it_has_the_content_and_nobody_can_change_it() -> None:
    with sealed_file([b"one ", b"two"]) as fd:
        assert os.pread(fd, 100, 0) == b"one two"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError), open(f"/proc/self/fd/{fd}", "r+b", buffering=0) as again:
            again.write(b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
