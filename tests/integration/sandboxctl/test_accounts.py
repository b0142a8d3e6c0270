"""Users by name, where a container leads to what the kernel makes up."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.linux.mounts import attach_mount, cloned_tree, unmount_all
from sandboxctl.accounts import Account, find_account


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    """With a /proc, as that of a running container has."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc").mkdir()
    with cloned_tree("/proc") as proc:
        attach_mount(proc, str(tmp_path / "proc"))
    yield tmp_path
    unmount_all(str(tmp_path))


@pytest.mark.parametrize("path", ["/proc/kmsg", "/proc/1/clear_refs", "/proc/1/status"])
def test_what_the_kernel_makes_up_is_not_read(rootfs: Path, path: str) -> None:
    (rootfs / "etc/passwd").symlink_to(path)
    assert find_account(str(rootfs), "1") == Account(1, 0)
