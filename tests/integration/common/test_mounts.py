"""Root file systems are mounted as the engine asks, or not at all."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from common.errors import InvalidArgument
from common.linux.mounts import (
    MountSpec,
    mount,
    mount_rootfs,
    mount_tmpfs,
    mounts_below,
    umount,
    unmount_all,
    unmount_stack,
)

IDS = ("uidmap=0:100000:65536", "gidmap=0:100000:65536")


class Layers:
    def __init__(self, tree: Path, count: int = 2, prefix: str = "layer") -> None:
        self.root = tree / "rootfs"
        self.upper = tree / "upper"
        self.work = tree / "work"
        for directory in (self.root, self.upper, self.work):
            directory.mkdir()
        self.lower = [tree / "snapshots" / f"{prefix}{number}" for number in range(count)]
        for number, layer in enumerate(self.lower):
            layer.mkdir(parents=True)
            (layer / f"file{number}").write_text(str(number))

    def overlay(self, *more: str) -> MountSpec:
        lower = "lowerdir=" + ":".join(map(str, self.lower))
        return MountSpec(
            "overlay", "overlay", (f"workdir={self.work}", f"upperdir={self.upper}", lower, *more)
        )


@pytest.fixture
def layers(tree: Path) -> Layers:
    return Layers(tree)


def test_an_overlay_shows_its_layers_and_takes_writes(layers: Layers) -> None:
    mount_rootfs([layers.overlay("index=off")], str(layers.root))
    (layers.root / "new").write_text("x")
    assert sorted(os.listdir(layers.root)) == ["file0", "file1", "new"]
    assert (layers.upper / "new").exists()
    assert unmount_stack(str(layers.root)) == 1
    assert os.listdir(layers.root) == []


def test_a_read_only_bind_mount_is_read_only_and_keeps_what_its_source_forbids(tree: Path) -> None:
    source, target = tree / "source", tree / "target"
    source.mkdir()
    target.mkdir()
    mount_tmpfs(str(source), 4096, 0o755)
    mount_rootfs([MountSpec("bind", str(source), ("rbind", "ro", "rprivate"))], str(target))
    flags = os.statvfs(target).f_flag
    assert flags & os.ST_RDONLY
    assert flags & os.ST_NOSUID
    assert flags & os.ST_NODEV
    assert flags & os.ST_NOEXEC
    with pytest.raises(OSError) as caught:
        (target / "x").touch()
    assert caught.value.errno == errno.EROFS
    (source / "x").touch()


def test_rbind_carries_the_mounts_below_and_bind_does_not(tree: Path) -> None:
    source, target = tree / "source", tree / "target"
    (source / "sub").mkdir(parents=True)
    target.mkdir()
    mount_tmpfs(str(source / "sub"), 4096, 0o755)
    (source / "sub/file").touch()
    for kind, visible in (("rbind", True), ("bind", False)):
        mount_rootfs([MountSpec("bind", str(source), (kind, "rw"))], str(target))
        assert (target / "sub/file").exists() is visible
        unmount_stack(str(target))


def test_several_mounts_stack_in_order_and_may_name_a_place_inside(tree: Path, layers: Layers) -> None:
    (layers.lower[0] / "data").mkdir()
    specs = [layers.overlay(), MountSpec("tmpfs", "tmpfs", ("size=4k",), target="/data")]
    mount_rootfs(specs, str(layers.root))
    assert mounts_below(str(layers.root)) == [str(layers.root), str(layers.root / "data")]
    assert unmount_all(str(layers.root)) == 2


def test_a_link_in_the_image_does_not_lead_a_mount_out_of_the_root(tree: Path, layers: Layers) -> None:
    outside = tree / "outside"
    outside.mkdir()
    (layers.lower[0] / "data").symlink_to(outside)
    specs = [layers.overlay(), MountSpec("tmpfs", "tmpfs", (), target="data")]
    with pytest.raises(FileNotFoundError):
        mount_rootfs(specs, str(layers.root))
    assert mounts_below(str(tree)) == []


def test_options_longer_than_a_page_are_made_relative(tree: Path) -> None:
    layers = Layers(tree, count=60, prefix="x" * 50)
    spec = layers.overlay()
    assert len(",".join(spec.options)) > os.sysconf("SC_PAGE_SIZE")
    directory, threads = os.getcwd(), threading.active_count()
    mount_rootfs([spec], str(layers.root))
    assert len(os.listdir(layers.root)) == 60
    assert (os.getcwd(), threading.active_count()) == (directory, threads)


def test_options_that_can_never_fit_are_refused(tree: Path) -> None:
    layers = Layers(tree, count=30, prefix="x" * 200)
    with pytest.raises(InvalidArgument, match="page"):
        mount_rootfs([layers.overlay()], str(layers.root))


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        (MountSpec("nosuchfs", "x"), InvalidArgument, "'nosuchfs'"),
        (MountSpec("", "x"), InvalidArgument, "no file system type"),
        (MountSpec("fuse.sshfs", "x"), InvalidArgument, "'fuse.sshfs'"),
        (MountSpec("erofs", "/image", ("ro", "loop")), InvalidArgument, "'loop'"),
        (MountSpec("bind", "/no/such/source", ("rbind",)), FileNotFoundError, "/no/such/source"),
        (MountSpec("ext4", "/dev/null"), OSError, "/dev/null"),
        (MountSpec("overlay", "overlay", ("lowerdir=/no/such",)), OSError, "overlay"),
        (MountSpec("tmpfs", "tmpfs", ("nonsense=1",)), OSError, "tmpfs"),
        (MountSpec("overlay", "overlay", ("lowerdir=/usr:/etc", *IDS)), InvalidArgument, "user namespace"),
    ],
)
def test_what_fails_is_named_and_takes_the_mounts_before_it_along(
    tree: Path, spec: MountSpec, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        mount_rootfs([MountSpec("tmpfs", "first"), spec], str(tree))
    assert text in str(caught.value)
    assert mounts_below(str(tree)) == []


def test_a_target_that_is_a_link_or_a_file_is_refused(tree: Path) -> None:
    (tree / "real").mkdir()
    (tree / "link").symlink_to("real")
    (tree / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(InvalidArgument, match=name):
            mount_rootfs([MountSpec("tmpfs", "tmpfs")], str(tree / name))
    with pytest.raises(FileNotFoundError):
        mount_rootfs([MountSpec("tmpfs", "tmpfs")], str(tree / "none"))


def test_an_idmapped_overlay_shifts_its_layers_and_leaves_one_mount(
    tree: Path, layers: Layers, userns_fd: int
) -> None:
    os.chown(layers.lower[1] / "file1", 33, 44)
    mount_rootfs([layers.overlay(*IDS)], str(layers.root), userns_fd)
    owners = {entry.name: (entry.stat().st_uid, entry.stat().st_gid) for entry in os.scandir(layers.root)}
    assert owners == {"file0": (100000, 100000), "file1": (100033, 100044)}
    assert mounts_below(str(tree)) == [str(layers.root)]
    (layers.root / "file0").write_text("changed")
    assert (layers.upper / "file0").stat().st_uid == 100000
    assert (layers.lower[0] / "file0").read_text() == "0"


def test_an_idmapped_overlay_that_fails_leaves_nothing(tree: Path, layers: Layers, userns_fd: int) -> None:
    layers.lower.append(tree / "missing")
    with pytest.raises(FileNotFoundError, match="missing"):
        mount_rootfs([layers.overlay(*IDS)], str(layers.root), userns_fd)
    layers.lower.pop()
    with pytest.raises(OSError):
        mount_rootfs([layers.overlay(*IDS, "nonsense")], str(layers.root), userns_fd)
    assert mounts_below(str(tree)) == []
    assert os.listdir(layers.root) == []


def test_an_idmapped_overlay_may_have_many_layers(tree: Path, userns_fd: int) -> None:
    layers = Layers(tree, count=100)
    mount_rootfs([layers.overlay(*IDS)], str(layers.root), userns_fd)
    assert {entry.stat().st_uid for entry in os.scandir(layers.root)} == {100000}
    assert mounts_below(str(tree)) == [str(layers.root)]


def test_an_idmapped_bind_mount_shifts_owners(tree: Path, userns_fd: int) -> None:
    source, target = tree / "source", tree / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").touch()
    mount_rootfs([MountSpec("bind", str(source), ("rbind", "ro", *IDS))], str(target), userns_fd)
    assert (target / "file").stat().st_uid == 100000
    assert os.statvfs(target).f_flag & os.ST_RDONLY


@pytest.mark.parametrize(
    "name", ["plain", "with space", "tab\there", "new\nline", "back\\slash", "ü", "a\\040b"]
)
def test_mounts_are_found_whatever_their_path_contains(tree: Path, name: str) -> None:
    base = tree / name
    (base / "a/b").mkdir(parents=True)
    sibling = tree / (name + "x")
    sibling.mkdir()
    for place in (base / "a", base / "a", base / "a/b", sibling):
        place.mkdir(exist_ok=True)
        mount_tmpfs(str(place), 4096, 0o755)
        if place == base / "a":
            (place / "b").mkdir()
    found = mounts_below(str(base))
    assert found == [str(base / "a"), str(base / "a"), str(base / "a/b")]
    assert unmount_all(str(base)) == 3
    assert mounts_below(str(base)) == []
    assert mounts_below(str(tree)) == [str(sibling)]


def test_all_mounts_are_below_the_root() -> None:
    assert "/proc" in mounts_below("/")


def test_unmounting_what_is_not_mounted_is_harmless_where_it_may_be(tree: Path) -> None:
    assert unmount_all(str(tree)) == 0
    assert unmount_stack(str(tree)) == 0
    assert unmount_stack(str(tree / "none")) == 0
    with pytest.raises(OSError) as caught:
        umount(str(tree))
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == str(tree)


def test_a_link_is_never_unmounted_through(tree: Path) -> None:
    (tree / "real").mkdir()
    mount_tmpfs(str(tree / "real"), 4096, 0o755)
    (tree / "link").symlink_to("real")
    assert unmount_stack(str(tree / "link")) == 0
    assert mounts_below(str(tree)) == [str(tree / "real")]


def test_a_tmpfs_has_the_size_mode_and_owner_asked_for(tree: Path) -> None:
    mount_tmpfs(str(tree), 64 * 1024, 0o1777, uid=12, gid=34)
    status = tree.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o1777, 12, 34)
    usage = os.statvfs(tree)
    assert usage.f_blocks * usage.f_frsize == 64 * 1024


def test_errors_name_source_and_target(tree: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mount("/no/such", str(tree), None, 0x1000)
    assert (caught.value.filename, caught.value.filename2) == ("/no/such", str(tree))


def test_looking_for_mounts_stays_cheap_with_many_of_them(tree: Path) -> None:
    for number in range(500):
        place = tree / f"pod{number}"
        place.mkdir()
        mount_tmpfs(str(place), 4096, 0o700)
    started_s = time.perf_counter()
    assert mounts_below(str(tree / "pod250")) == [str(tree / "pod250")]
    assert time.perf_counter() - started_s < 0.05
