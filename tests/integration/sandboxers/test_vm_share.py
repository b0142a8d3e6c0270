"""The directory that a VM pod shares with its guest: what is where, what the guest may write, what stays."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import InvalidArgument
from common.linux.flags import MS_BIND, MS_NODEV, MS_NOSUID, MS_SHARED
from common.linux.mounts import MountSpec, mount, mounts_below, unmount_all
from sandboxers.vm.guest_spec import BindMount
from sandboxers.vm.share import PodShare


@pytest.fixture
def share(tmp_path: Path) -> Iterator[PodShare]:
    share = PodShare(str(tmp_path))
    share.make()
    yield share
    share.remove()
    assert mounts_below(str(tmp_path)) == []


@pytest.fixture
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("volume")
    (directory / "file").write_text("from the host")
    return directory


def test_a_bundle_is_seen_and_only_what_is_mounted_can_be_written(
    share: PodShare, volume: Path, tmp_path: Path
) -> None:
    share.begin("one")
    share.mount_rootfs("one", [MountSpec("bind", str(volume), ("rbind", "rw"), "")])
    assert share.bind("one", 0, BindMount(0, str(volume))) == "one/mounts/0"
    share.bind("one", 1, BindMount(1, str(volume), read_only=True))
    share.bind("one", 2, BindMount(2, str(volume / "file")))
    share.write_spec("one", {"ociVersion": "1.0.2"})
    seen = Path(share.path, "one")
    assert json.loads((seen / "config.json").read_text()) == {"ociVersion": "1.0.2"}
    assert (seen / "rootfs/file").read_text() == (seen / "mounts/2").read_text() == "from the host"
    (seen / "mounts/0/back").write_text("from the guest")
    assert (volume / "back").read_text() == "from the guest"
    for path in (seen / "mounts/1/no", seen / "no", seen / "config.json", Path(share.path, "no")):
        with pytest.raises(OSError) as raised:
            path.write_text("no")
        assert raised.value.errno == errno.EROFS
    # What the guest may write is not below the directory in which files are made and removed here.
    assert os.listdir(tmp_path / "bundles/one/rootfs") == []
    assert os.listdir(tmp_path / "bundles/one/mounts/0") == []


def test_removing_a_container_leaves_volumes_and_other_containers_alone(
    share: PodShare, volume: Path
) -> None:
    for name in ("one", "two"):
        share.begin(name)
        share.bind_rootfs(name, str(volume))
        share.bind(name, 0, BindMount(0, str(volume)))
    share.remove_container("one")
    share.remove_container("one")
    assert os.listdir(share.path) == ["two"]
    assert Path(share.path, "two/mounts/0/file").read_text() == "from the host"
    assert (volume / "file").read_text() == "from the host"


def test_a_bundle_that_was_begun_is_begun_anew(share: PodShare, volume: Path) -> None:
    for _ in range(2):
        share.begin("one")
        share.bind_rootfs("one", str(volume))
        share.bind("one", 0, BindMount(0, str(volume)))
        share.write_spec("one", {})


@pytest.mark.parametrize("kind", ["missing", "socket", "device"])
def test_what_a_guest_cannot_have_is_refused(share: PodShare, volume: Path, kind: str) -> None:
    share.begin("one")
    source = {"missing": str(volume / "missing"), "device": "/dev/null", "socket": str(volume / "fifo")}[kind]
    if kind == "socket":
        os.mkfifo(source)
    with pytest.raises(InvalidArgument, match=source):
        share.bind("one", 0, BindMount(0, source))


def test_mounts_do_not_spread_to_the_rest_of_the_host(share: PodShare, volume: Path, tmp_path: Path) -> None:
    before = mounts_below("/")
    share.begin("one")
    share.bind_rootfs("one", str(volume))
    assert sorted(set(mounts_below("/")) - set(before)) == [f"{tmp_path}/share/one/rootfs"]


@pytest.fixture
def shared_volume(volume: Path) -> Iterator[Path]:
    """A volume as nodes with systemd have them: its mounts are seen by all peers, one is in it, one may come."""
    mount("volume", str(volume), "tmpfs", MS_NOSUID | MS_NODEV)
    mount(None, str(volume), None, MS_SHARED)
    for name in ("inner", "later"):
        (volume / name).mkdir()
    mount("inner", str(volume / "inner"), "tmpfs")
    (volume / "inner/file").write_text("inner")
    yield volume
    unmount_all(str(volume))


def test_mounts_in_a_volume_are_seen_and_stay_the_hosts(share: PodShare, shared_volume: Path) -> None:
    share.begin("one")
    share.bind_rootfs("one", str(shared_volume))
    share.bind("one", 0, BindMount(0, str(shared_volume)))
    mount("later", str(shared_volume / "later"), "tmpfs")
    (shared_volume / "later/file").write_text("later")
    for seen in (Path(share.path, "one/rootfs"), Path(share.path, "one/mounts/0")):
        assert (seen / "inner/file").read_text() == "inner"
        assert (seen / "later/file").read_text() == "later"
    share.remove_container("one")
    assert (shared_volume / "inner/file").read_text() == "inner"
    assert (shared_volume / "later/file").read_text() == "later"


def flags_of(path: Path) -> int:
    return os.statvfs(path).f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV)


def test_a_read_only_volume_is_so_for_the_guest_itself(
    share: PodShare, shared_volume: Path, tmp_path: Path
) -> None:
    # What virtiofsd sees is in a mount namespace of its own, which gets mounts with the flags that they begin with.
    others = tmp_path / "others"
    others.mkdir()
    mount(share.path, str(others), None, MS_BIND)
    share.begin("one")
    share.bind("one", 0, BindMount(0, str(shared_volume), read_only=True))
    share.bind("one", 1, BindMount(1, str(shared_volume), read_only=True, recursively=True))
    kept = os.ST_NOSUID | os.ST_NODEV
    for directory in (Path(share.path), others):
        assert flags_of(directory / "one/mounts/0") == kept | os.ST_RDONLY
        assert flags_of(directory / "one/mounts/0/inner") == 0
        assert flags_of(directory / "one/mounts/1/inner") == os.ST_RDONLY
    assert flags_of(shared_volume) == kept
    share.remove_container("one")
    unmount_all(str(others))
