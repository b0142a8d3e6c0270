"""The root of a process of its own: what is mounted in it, with which access, and that nothing leads out of it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.linux.container_root import make_mount_point

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = Path(__file__).parents[3]

# Enters a root and evaluates expressions there; an OSError is told by its name.
INSIDE = """
import json, os, stat, sys
from common.errors import InvalidArgument
from common.linux.container_root import ContainerRoot, InnerMount

rootfs, mounts, readonly, expressions = json.loads(sys.argv[1])
try:
    root = ContainerRoot(rootfs)
    root.mount(InnerMount(*mount[:3], tuple(mount[3])) for mount in mounts)
    root.enter(readonly=readonly)
except InvalidArgument as error:
    print(json.dumps([f"refused: {error}"]))
    sys.exit()

def write(path):
    with open(path, "w") as file:
        file.write("text")

results = []
for expression in expressions:
    try:
        results.append(eval(expression))
    except OSError as error:
        results.append(error.__class__.__name__ if error.errno != 30 else "read-only")
print(json.dumps(results))
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/name").write_text("inside")
    return root


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("from outside")
    return volume


def inside(rootfs: Path, *expressions: str, mounts: Any = (), readonly: bool = False) -> list[Any]:
    argument = json.dumps([str(rootfs), mounts, readonly, expressions])
    command = [sys.executable, "-c", INSIDE, argument]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout)
    return results


def test_nothing_of_the_host_is_left(rootfs: Path) -> None:
    listing, parent, host = inside(
        rootfs, "os.listdir('/')", "os.listdir('/..')", f"os.path.exists({str(rootfs)!r})"
    )
    assert listing == parent == ["etc"]
    assert host is False
    assert os.path.ismount("/proc"), "and the host has everything still"


def test_a_read_only_root_is_so_and_what_is_mounted_in_it_is_not(rootfs: Path, volume: Path) -> None:
    mounts = [["/data", "bind", str(volume), ["rbind", "rw"]]]
    results = inside(rootfs, "write('/etc/new')", "write('/data/new')", mounts=mounts, readonly=True)
    assert results == ["read-only", None]
    assert (volume / "new").read_text() == "text"


def test_what_a_link_leads_to_is_made_inside(rootfs: Path, volume: Path) -> None:
    (rootfs / "etc/resolv.conf").symlink_to("../run/resolve/stub")
    (rootfs / "etc/above").symlink_to("../../../../top")
    (rootfs / "run").symlink_to("/var/run")
    (rootfs / "loop").symlink_to("loop")
    mounts = [
        ["/etc/resolv.conf", "bind", str(volume / "file"), ["bind"]],
        ["/etc/above", "bind", str(volume), ["rbind"]],
    ]
    paths = ("/etc/resolv.conf", "/var/run/resolve/stub")
    results = inside(
        rootfs, *(f"open('{path}').read()" for path in paths), "os.listdir('/top')", mounts=mounts
    )
    assert results == ["from outside", "from outside", ["file"]]
    (refused,) = inside(rootfs, mounts=[["/loop/data", "bind", str(volume), ["rbind"]]])
    assert refused.startswith("refused") and "symbolic links" in refused


def test_device_nodes_work_in_dev_only(rootfs: Path, volume: Path) -> None:
    below = volume / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        for directory in (rootfs, volume, below):
            os.mknod(directory / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        results = inside(
            rootfs,
            *(f"open('{path}/zero', 'rb').read(1).hex()" for path in ("", "/data", "/data/below", "/new")),
            "open('/dev/zero', 'rb').read(1).hex()",
            mounts=[
                ["/data", "bind", str(volume), ["rbind", "dev"]],
                ["/dev", "tmpfs", "tmpfs", ["nosuid", "nodev"]],
                ["/new", "tmpfs", "tmpfs", ["dev"]],
                ["/new/zero", "bind", str(volume / "zero"), ["bind"]],
            ],
        )
    finally:
        subprocess.run(["umount", below], check=True)
    assert results == [*["PermissionError"] * 4, "00"]


@pytest.mark.parametrize(
    ("options", "below"), [(["rbind", "ro"], None), (["rbind", "rro"], "read-only"), (["rbind"], None)]
)
def test_access_is_that_of_the_options(rootfs: Path, volume: Path, options: list[str], below: Any) -> None:
    deeper = volume / "deeper"
    deeper.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", deeper], check=True)
    try:
        results = inside(
            rootfs,
            "write('/data/new')",
            "write('/data/deeper/new')",
            mounts=[["/data", "bind", str(volume), options]],
        )
    finally:
        subprocess.run(["umount", deeper], check=True)
    assert results == ["read-only" if "ro" in options or "rro" in options else None, below]


def test_single_files_and_deep_destinations_get_their_mount_points(rootfs: Path, volume: Path) -> None:
    mounts = [
        ["/a/b/c", "bind", str(volume / "file"), ["bind", "ro"]],
        ["/x/y", "bind", str(volume), ["rbind"]],
    ]
    results = inside(rootfs, "open('/a/b/c').read()", "os.listdir('/x/y')", "write('/a/b/c')", mounts=mounts)
    assert results == ["from outside", ["file"], "read-only"]


def test_links_of_the_image_lead_nowhere_else(rootfs: Path, volume: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "link").symlink_to(outside)
    (rootfs / "up").symlink_to("../../../../../../..")
    # What it leads to is not there inside, and is made there.
    mounts = [["/link/data", "bind", str(volume), ["rbind"]]]
    assert inside(rootfs, f"os.listdir('{outside}/data')", mounts=mounts) == [["file"]]
    mounts = [["/up/etc/data", "bind", str(volume), ["rbind"]]]
    assert inside(rootfs, "os.listdir('/etc/data')", mounts=mounts) == [["file"]]
    assert os.listdir(outside) == []
    assert not os.path.exists("/etc/data")


def test_a_temporary_file_system_has_its_options_and_dev_its_devices(rootfs: Path) -> None:
    mounts = [
        ["/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755", "size=64k"]],
        ["/tmp", "tmpfs", "tmpfs", ["mode=1777"]],
    ]
    results = inside(
        rootfs,
        "sorted(os.listdir('/dev'))",
        "open('/dev/zero', 'rb').read(2).hex()",
        "open('/dev/null', 'w').write('x')",
        "oct(os.stat('/tmp').st_mode)",
        "oct(os.stat('/dev').st_mode)",
        mounts=mounts,
    )
    assert results == [["full", "null", "random", "urandom", "zero"], "0000", 1, "0o41777", "0o40755"]
    assert os.listdir(rootfs / "dev") == []


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        (["/data", "bind", "/nonesuch", ["rbind"]], "/nonesuch on /data"),
        (["/../data", "bind", "/etc", ["rbind"]], "upwards"),
        (["/etc/name/below", "bind", "/etc", ["rbind"]], "/etc/name/below"),
        (["/data", "bind", "/etc", ["rbind", "loop"]], "loop"),
    ],
)
def test_a_mount_that_cannot_be_made_is_named(rootfs: Path, mount: list[Any], reason: str) -> None:
    (result,) = inside(rootfs, mounts=[mount])
    assert result.startswith("refused") and reason in result


def test_making_a_mount_point_keeps_what_is_there(rootfs: Path) -> None:
    fd = os.open(rootfs, os.O_PATH | os.O_DIRECTORY)
    try:
        for destination, is_directory in (
            ("/etc/name", False),
            ("/etc", True),
            ("/", True),
            ("/new/file", False),
        ):
            os.close(make_mount_point(fd, destination, is_directory))
        with pytest.raises(OSError, match="upwards"):
            make_mount_point(fd, "/etc/../..", True)
    finally:
        os.close(fd)
    assert (rootfs / "etc/name").read_text() == "inside"
    assert (rootfs / "new/file").is_file()


def test_an_empty_root_has_room_for_temporary_files_up_to_its_size() -> None:
    code = """
import json, os, tempfile
from common.linux.container_root import enter_empty_root
enter_empty_root(1 << 20)
with tempfile.NamedTemporaryFile() as file:
    written = os.write(file.fileno(), bytes(2 << 20))
print(json.dumps([os.listdir("/"), os.listdir("/tmp"), oct(os.stat("/tmp").st_mode), written]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(done.stdout) == [["tmp"], [], "0o41777", 1 << 20]
