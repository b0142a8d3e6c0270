"""The directory that a VM pod shares with its guest: what is where, what the guest may write, what stays."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import InvalidArgument
from common.linux.mounts import MountSpec, mounts_below
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
    assert share.bind("one", 0, str(volume), read_only=False) == "one/mounts/0"
    share.bind("one", 1, str(volume), read_only=True)
    share.bind("one", 2, str(volume / "file"), read_only=False)
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
        share.bind(name, 0, str(volume), read_only=False)
    share.remove_container("one")
    share.remove_container("one")
    assert os.listdir(share.path) == ["two"]
    assert Path(share.path, "two/mounts/0/file").read_text() == "from the host"
    assert (volume / "file").read_text() == "from the host"


def test_a_bundle_that_was_begun_is_begun_anew(share: PodShare, volume: Path) -> None:
    for _ in range(2):
        share.begin("one")
        share.bind_rootfs("one", str(volume))
        share.bind("one", 0, str(volume), read_only=False)
        share.write_spec("one", {})


@pytest.mark.parametrize("kind", ["missing", "socket", "device"])
def test_what_a_guest_cannot_have_is_refused(share: PodShare, volume: Path, kind: str) -> None:
    share.begin("one")
    source = {"missing": str(volume / "missing"), "device": "/dev/null", "socket": str(volume / "fifo")}[kind]
    if kind == "socket":
        os.mkfifo(source)
    with pytest.raises(InvalidArgument, match=source):
        share.bind("one", 0, source, read_only=False)


def test_mounts_do_not_spread_to_the_rest_of_the_host(share: PodShare, volume: Path, tmp_path: Path) -> None:
    before = mounts_below("/")
    share.begin("one")
    share.bind_rootfs("one", str(volume))
    assert sorted(set(mounts_below("/")) - set(before)) == [f"{tmp_path}/share/one/rootfs"]
