"""A pod's /dev/shm is one tmpfs, mounted only while somebody needs it, and found again by a new daemon."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.linux.mounts import make_private, mount_tmpfs, mounts_below, unmount_all
from sandboxers.host.shared_memory import SharedMemory

SIZE_BYTES = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A mount of its own, so that nothing that goes wrong stays."""
    mount_tmpfs(str(tmp_path), 1 << 20, 0o700)
    make_private(str(tmp_path))
    yield tmp_path
    unmount_all(str(tmp_path))


@pytest.fixture
def shm(place: Path) -> Iterator[SharedMemory]:
    shm = SharedMemory(str(place / "shm"), SIZE_BYTES, (0, 0))
    shm.make()
    yield shm
    shm.release()


def mounted(shm: SharedMemory) -> list[str]:
    return mounts_below(shm.path)


def test_it_is_mounted_for_its_users_only_and_keeps_its_files(shm: SharedMemory) -> None:
    assert mounted(shm) == []
    shm.attach("one")
    shm.attach("one")
    shm.attach("two")
    assert mounted(shm) == [shm.path]
    Path(shm.path, "note").write_text("kept")
    assert os.statvfs(shm.path).f_blocks * os.statvfs(shm.path).f_frsize == SIZE_BYTES
    assert os.stat(shm.path).st_mode & 0o7777 == 0o1777
    shm.detach("two")
    assert mounted(shm) == [shm.path]
    shm.detach("one")
    shm.detach("one")
    assert mounted(shm) == []
    for _ in range(3):
        shm.attach("again")
        assert Path(shm.path, "note").read_text() == "kept"
        shm.detach("again")
    shm.release()
    shm.release()
    assert mounted(shm) == []


def test_a_pod_that_cannot_have_one_leaves_nothing(place: Path) -> None:
    (place / "shm.json.new").mkdir()
    shm = SharedMemory(str(place / "shm"), SIZE_BYTES, (0, 0))
    with pytest.raises(OSError, match=r"shm\.json\.new"):
        shm.make()
    assert mounted(shm) == []


class Member:
    """A process with a mount namespace of its own, where the pod's tmpfs is at /dev/shm, as in a container."""

    def __init__(self, source: str) -> None:
        script = f"mount --bind {source} /dev/shm && echo ready && exec sleep 60"
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", script],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def member(shm: SharedMemory) -> Iterator[Member]:
    shm.attach("member")
    Path(shm.path, "note").write_text("of the pod")
    member = Member(shm.path)
    shm.detach("member")
    yield member
    member.end()


def test_a_new_daemon_finds_it_in_a_container_that_runs(shm: SharedMemory, member: Member) -> None:
    successor = SharedMemory(shm.path, SIZE_BYTES, (0, 0))
    shm.release()
    successor.recover([os.getpid(), 2**22 - 1, member.pid])
    successor.settle()
    try:
        assert mounted(successor) == []
        successor.attach("x")
        assert Path(successor.path, "note").read_text() == "of the pod"
    finally:
        successor.release()


def die(daemons: SharedMemory) -> None:
    """What the kernel does for a daemon that is killed: its descriptors go, its mounts stay."""
    for fd in (daemons._held, daemons._spare):
        if fd >= 0:
            os.close(fd)
    daemons._held = daemons._spare = -1


def content_after(successor: SharedMemory) -> list[str]:
    """What a new daemon's containers find in it; ends that daemon's hold."""
    try:
        successor.settle()
        assert mounted(successor) == []
        successor.attach("y")
        return os.listdir(successor.path)
    finally:
        successor.release()


def test_where_nothing_runs_there_is_a_new_one(shm: SharedMemory) -> None:
    shm.attach("x")
    Path(shm.path, "note").write_text("old")
    shm.detach("x")
    successor = SharedMemory(shm.path, SIZE_BYTES, (0, 0))
    successor.recover([])
    assert content_after(successor) == []


def test_what_a_daemon_has_left_mounted_is_taken_up(shm: SharedMemory) -> None:
    shm.attach("x")  # it died while it made a container
    Path(shm.path, "note").write_text("old")
    successor = SharedMemory(shm.path, SIZE_BYTES, (0, 0))
    successor.recover([])
    assert content_after(successor) == ["note"]


@pytest.mark.parametrize("settled", [False, True], ids=["before another was kept", "after that"])
def test_daemons_that_die_while_they_recover_lose_nothing(shm: SharedMemory, settled: bool) -> None:
    kept = [shm.take_spare()]
    shm.attach("x")
    Path(shm.path, "note").write_text("of the pod")
    shm.detach("x")
    for _ in range(3):
        successor = SharedMemory(shm.path, SIZE_BYTES, (0, 0))
        successor.recover([], [os.dup(fd) for fd in kept])
        spare = successor.take_spare()
        if settled:
            kept.append(spare)
            successor.settle()
        else:
            os.close(spare)
        die(successor)
    last = SharedMemory(shm.path, SIZE_BYTES, (0, 0))
    last.recover([], kept)
    assert content_after(last) == ["note"]


def test_a_kept_mount_that_is_spent_does_not_cost_the_pod(shm: SharedMemory) -> None:
    spent = shm.take_spare()
    daemon = SharedMemory(shm.path, SIZE_BYTES, (0, 0))
    daemon.recover([], [os.dup(spent)])
    daemon.settle()
    die(daemon)
    successor = SharedMemory(shm.path, SIZE_BYTES, (0, 0))
    successor.recover([], [spent])
    assert content_after(successor) == []


def test_a_file_system_that_is_not_the_pods_is_not_taken(
    shm: SharedMemory, member: Member, place: Path
) -> None:
    stranger = SharedMemory(str(place / "other"), SIZE_BYTES, (0, 0))
    stranger.make()
    stranger.release()
    successor = SharedMemory(stranger.path, SIZE_BYTES, (0, 0))
    successor.recover([member.pid])
    successor.settle()
    try:
        successor.attach("x")
        assert os.listdir(successor.path) == []
    finally:
        successor.release()
