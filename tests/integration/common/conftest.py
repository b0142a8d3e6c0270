"""What the root tests of the kernel primitives share: a tree of mounts that is always taken down."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.linux.mounts import unmount_all


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A directory below which nothing stays mounted."""
    yield tmp_path
    unmount_all(str(tmp_path))


@pytest.fixture
def foreign_pod() -> Iterator[int]:
    """The pid of a process in a user namespace (0 is 100000 outside) that owns its network namespace."""
    process = subprocess.Popen(["unshare", "--user", "--net", "sleep", "60"])
    try:
        own = os.stat("/proc/self/ns/net").st_ino
        while os.stat(f"/proc/{process.pid}/ns/net").st_ino == own:
            time.sleep(0.005)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 100000 65536")
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def userns_fd(foreign_pod: int) -> Iterator[int]:
    fd = os.open(f"/proc/{foreign_pod}/ns/user", os.O_RDONLY)
    yield fd
    os.close(fd)
