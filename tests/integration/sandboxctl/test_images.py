"""Unpacking by umoci: what layers say is done, and nothing outside of the image, however they say it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import InvalidArgument
from common.oci.platform import architecture
from common.process.exits import ExitWatcher
from sandboxctl.embedded.image_store import ImageStore

# VFS_CAP_REVISION_2 with CAP_NET_RAW (include/uapi/linux/capability.h).
FILE_CAPABILITY = "\x01\x00\x00\x02\x00\x20" + "\x00" * 14


def entry(name: str, content: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a layer: a file if there is content, else what `fields` say, which are those of TarInfo."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    info.size = len(content or b"")
    return info, content or b""


def make_image(directory: Path, *layers: Sequence[tuple[tarfile.TarInfo, bytes]]) -> str:
    """Write a layout with one image."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    packed = [put(_pack(layer), "layer.v1.tar") for layer in layers]
    config = {
        "os": "linux",
        "architecture": architecture(),
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in packed]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": packed,
    }
    index = {"schemaVersion": 2, "manifests": [put(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return str(directory)


def _pack(entries: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def store(watcher: ExitWatcher, tmp_path: Path) -> ImageStore:
    return ImageStore(watcher, str(tmp_path / "images"))


async def test_whiteouts_owners_modes_and_attributes(store: ImageStore, tmp_path: Path) -> None:
    lower = [
        entry("kept", type=tarfile.DIRTYPE, mode=0o750, uid=5, gid=6),
        entry("kept/old", b"old"),
        entry(
            "kept/tool",
            b"tool",
            mode=0o4755,
            uid=7,
            pax_headers={"SCHILY.xattr.security.capability": FILE_CAPABILITY},
        ),
        entry("kept/same", type=tarfile.LNKTYPE, linkname="kept/tool"),
        entry("emptied", type=tarfile.DIRTYPE, mode=0o755),
        entry("emptied/old", b"old"),
        entry("disk", type=tarfile.BLKTYPE, devmajor=8),
    ]
    upper = [entry("kept/.wh.old"), entry("emptied/.wh..wh..opq"), entry("emptied/new", b"new")]
    image = await store.get(make_image(tmp_path / "layout", lower, upper))
    root = Path(image.rootfs)
    assert sorted(os.listdir(root / "kept")) == ["same", "tool"]
    assert os.listdir(root / "emptied") == ["new"]
    owner = (root / "kept").stat()
    assert (owner.st_uid, owner.st_gid, stat.S_IMODE(owner.st_mode)) == (5, 6, 0o750)
    tool = (root / "kept/tool").stat()
    assert (tool.st_uid, stat.S_IMODE(tool.st_mode), tool.st_nlink) == (7, 0o4755, 2)
    assert os.getxattr(root / "kept/tool", "security.capability") == FILE_CAPABILITY.encode("latin-1")
    assert stat.S_ISBLK((root / "disk").stat().st_mode)


async def test_an_image_is_unpacked_once_however_it_is_packed(store: ImageStore, tmp_path: Path) -> None:
    layout = make_image(tmp_path / "layout", [entry("file", b"content")])
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(layout, arcname=".")
    first, *others = await asyncio.gather(*(store.get(path) for path in (layout, str(archive), layout)))
    assert {image.rootfs for image in others} == {first.rootfs}
    assert sorted(os.listdir(tmp_path / "images")) == [".lock", first.digest.removeprefix("sha256:")]


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../../../../../../evil", b"")],
        [entry("/evil", b"")],
        [entry("link", type=tarfile.SYMTYPE, linkname="{outside}"), entry("link/evil", b"")],
        [entry("link", type=tarfile.SYMTYPE, linkname="../../../../../..{outside}"), entry("link/evil", b"")],
        [entry("link", type=tarfile.LNKTYPE, linkname="{outside}/file"), entry("link", b"evil")],
        [entry(".", type=tarfile.SYMTYPE, linkname="{outside}"), entry("evil", b"")],
        [entry("link", type=tarfile.SYMTYPE, linkname="{outside}"), entry("link/.wh.file")],
        [entry("link", type=tarfile.SYMTYPE, linkname="{outside}"), entry("link/.wh..wh..opq")],
        [entry("x/.wh...")],
        [entry(".wh...")],
        [entry(".wh..")],
        [entry(".wh.")],
    ],
)
async def test_nothing_outside_of_the_image_is_touched(
    store: ImageStore, tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("whole")
    good = await store.get(make_image(tmp_path / "good", [entry("file", b"good")]))
    for info, _ in entries:
        info.linkname = info.linkname.replace("{outside}", str(outside))
    try:
        image = await store.get(make_image(tmp_path / "bad", entries))
        assert Path(image.rootfs).is_dir()
    except InvalidArgument as error:
        assert "\n" not in str(error)
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "whole"
    assert Path(good.rootfs, "file").read_text() == "good", "other images are not touched either"
    assert ".unpacking" not in os.listdir(tmp_path / "images")
    assert not Path("/evil").exists()


async def test_a_layer_that_is_not_what_the_configuration_says(store: ImageStore, tmp_path: Path) -> None:
    layout = Path(make_image(tmp_path / "layout", [entry("file", b"content")]))
    # A manifest that is whole, with a layer that is whole, of another image.
    other = Path(make_image(tmp_path / "other", [entry("file", b"another")]))
    manifests = [_manifest(directory) for directory in (layout, other)]
    manifests[0]["layers"] = manifests[1]["layers"]
    for blob in (other / "blobs/sha256").iterdir():
        (layout / "blobs/sha256" / blob.name).write_bytes(blob.read_bytes())
    text = json.dumps(manifests[0]).encode()
    digest = hashlib.sha256(text).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(text)
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(text)}
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidArgument, match="layer 1 of 1 is not the image's own"):
        await store.get(str(layout))
    assert os.listdir(tmp_path / "images") == [".lock"]


def _manifest(layout: Path) -> dict[str, Any]:
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    document: dict[str, Any] = json.loads((layout / "blobs/sha256" / digest[7:]).read_text())
    return document


async def test_what_was_left_behind_half_unpacked_is_removed(store: ImageStore, tmp_path: Path) -> None:
    left = tmp_path / "images/.unpacking/nest/image/rootfs"
    left.mkdir(parents=True)
    await store.get(make_image(tmp_path / "layout", [entry("file", b"content")]))
    assert ".unpacking" not in os.listdir(tmp_path / "images")


async def test_a_root_file_system_is_taken_as_it_is(store: ImageStore, tmp_path: Path) -> None:
    directory = tmp_path / "a:b"
    directory.mkdir()
    image = await store.get(str(directory))
    assert (image.rootfs, image.digest) == (str(directory), "")
    with pytest.raises(InvalidArgument, match="has no images in it"):
        await store.get(f"{directory}:name")
