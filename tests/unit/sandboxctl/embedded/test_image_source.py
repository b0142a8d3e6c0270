"""Choosing and laying out an image: layouts, archives of both forms, and those that somebody has tampered with."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from common.errors import InvalidArgument, NotFound, SandboxdError
from common.oci.platform import architecture
from sandboxctl.embedded.image_source import open_image, split_reference, stage
from tests.engine.images import Layer, Layout

LAYER = Layer().file("hello", "hello").done()
OTHER = Layer().file("hello", "other").done()
SETTINGS = {"Entrypoint": ["/hello"], "Cmd": ["x"], "Env": ["A=b"], "User": "nobody", "StopSignal": "SIGINT"}


def make_layout(directory: Path, names: tuple[str, ...] = ("registry.example/team/hello:1",)) -> Path:
    layout = Layout(directory)
    for name in names:
        layout.add([name], [LAYER], {**SETTINGS, "WorkingDir": f"/{name[-1]}"})
    layout.write()
    return directory


def pack(archive: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(archive, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return archive


def config(**changes: Any) -> bytes:
    diff_ids = [f"sha256:{hashlib.sha256(LAYER).hexdigest()}"]
    document = {
        "os": "linux",
        "architecture": architecture(),
        "config": SETTINGS,
        "rootfs": {"diff_ids": diff_ids},
    }
    return json.dumps({**document, **changes}).encode()


def saved(archive: Path, layers: tuple[str, ...] = ("layer/layer.tar",), **changes: Any) -> Path:
    images = [{"Config": "config.json", "RepoTags": ["hello:1"], "Layers": list(layers)}]
    files = {"manifest.json": json.dumps(images).encode(), "config.json": config(**changes)}
    return pack(archive, {**files, "layer/layer.tar": LAYER}, {"other/layer.tar": "../layer/layer.tar"})


def staged(path: Path, directory: Path, name: str = "", limit_bytes: int = 1 << 20) -> list[str]:
    """Stage an image, and return the digests of the blobs that the layout then has."""
    with open_image(str(path), name) as image:
        stage(image, str(directory), limit_bytes)
    blobs = sorted(os.listdir(directory / "blobs/sha256"))
    for blob in blobs:
        assert hashlib.sha256((directory / "blobs/sha256" / blob).read_bytes()).hexdigest() == blob
    return blobs


def test_a_layout(tmp_path: Path) -> None:
    path = make_layout(tmp_path / "layout")
    with open_image(str(path), "") as image:
        assert image.config.entrypoint == ("/hello",)
        assert (image.config.command, image.config.environment) == (("x",), ("A=b",))
        assert (image.config.user, image.config.stop_signal) == ("nobody", "SIGINT")
    assert len(staged(path, tmp_path / "staged")) == 3, "layer, configuration and manifest"


@pytest.mark.parametrize("name", ["registry.example/team/hello:1", "team/hello:1", "hello:1", "hello", "1"])
def test_one_of_several_by_its_name(tmp_path: Path, name: str) -> None:
    path = make_layout(
        tmp_path / "layout", ("registry.example/team/hello:1", "registry.example/team/other:2")
    )
    with open_image(str(path), name) as image:
        assert image.config.working_directory == "/1"


def test_several_and_none_of_them_named(tmp_path: Path) -> None:
    path = make_layout(tmp_path / "layout", ("a:1", "b:2"))
    with (
        pytest.raises(InvalidArgument, match=r"has several images.* there are: a:1, b:2"),
        open_image(str(path), ""),
    ):
        pass
    with pytest.raises(NotFound, match="has no image 'c'"), open_image(str(path), "c"):
        pass


@pytest.mark.parametrize("layer", ["layer/layer.tar", "other/layer.tar"])
def test_what_docker_saved_before_version_25(tmp_path: Path, layer: str) -> None:
    path = saved(tmp_path / "saved.tar", (layer,))
    assert hashlib.sha256(LAYER).hexdigest() in staged(path, tmp_path / "staged", "hello")


def test_what_docker_saves_since(tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout")
    files = {str(file.relative_to(layout)): file.read_bytes() for file in layout.rglob("*") if file.is_file()}
    # It has its own list beside the index.
    archive = pack(tmp_path / "saved.tar", {**files, "manifest.json": b"[]"})
    assert staged(archive, tmp_path / "a") == staged(layout, tmp_path / "b")


def test_an_index_of_platforms_gives_the_one_for_this_machine(tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout")
    index = json.loads((layout / "index.json").read_text())
    (own,) = index["manifests"]
    foreign = {**own, "platform": {"os": "linux", "architecture": "s390x"}}
    attestation = {**own, "platform": {"os": "unknown", "architecture": "unknown"}}
    inner = json.dumps({"manifests": [foreign, attestation, own]}).encode()
    digest = hashlib.sha256(inner).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(inner)
    kind = "application/vnd.oci.image.index.v1+json"
    outer = {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(inner)}
    (layout / "index.json").write_text(json.dumps({"manifests": [outer]}))
    assert len(staged(layout, tmp_path / "staged")) == 3


def test_an_image_for_another_machine(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved.tar", architecture="s390x")
    with (
        pytest.raises(InvalidArgument, match="is for linux/s390x, and this machine is linux/"),
        open_image(str(path), ""),
    ):
        pass
    with open_image(str(path), "", foreign=True) as image:
        assert image.config.architecture == "s390x"


@pytest.mark.parametrize("what", ["manifest", "config", "layers"])
def test_a_damaged_blob_is_named(tmp_path: Path, what: str) -> None:
    layout = make_layout(tmp_path / "layout")
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    if what != "manifest":
        manifest = json.loads((layout / "blobs/sha256" / digest[7:]).read_text())
        digest = (manifest["config"] if what == "config" else manifest["layers"][0])["digest"]
    blob = layout / "blobs/sha256" / digest[7:]
    blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(InvalidArgument, match="damaged") as raised:
        staged(layout, tmp_path / "staged")
    assert digest in str(raised.value)


def test_a_blob_that_is_not_there(tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout")
    for blob in (layout / "blobs/sha256").iterdir():
        blob.unlink()
    with pytest.raises(NotFound, match="there is no blobs/sha256/"):
        staged(layout, tmp_path / "staged")


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../../../../etc/passwd", "..", "layer", "nothing", "other/layer.tar"]
)
def test_links_of_an_archive_lead_nowhere_else(tmp_path: Path, target: str) -> None:
    images = [{"Config": "config.json", "RepoTags": None, "Layers": ["x/link"]}]
    files = {"manifest.json": json.dumps(images).encode(), "config.json": config()}
    path = pack(tmp_path / "saved.tar", files, {"x/link": target})
    with pytest.raises((InvalidArgument, NotFound)):
        staged(path, tmp_path / "staged")


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../b"])
def test_members_are_inside_of_the_archive(tmp_path: Path, name: str) -> None:
    images = json.dumps([{"Config": name, "RepoTags": [], "Layers": []}]).encode()
    path = pack(tmp_path / "saved.tar", {"manifest.json": images})
    with pytest.raises(InvalidArgument, match="leads out of the image"), open_image(str(path), ""):
        pass


def test_blobs_of_a_layout_are_files(tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout")
    for blob in (layout / "blobs/sha256").iterdir():
        blob.unlink()
        os.mkfifo(blob)
    with pytest.raises(InvalidArgument, match="is not a regular file"):
        staged(layout, tmp_path / "staged")


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(InvalidArgument, match="neither a directory nor a readable tar archive"):
        staged(tmp_path / "text", tmp_path / "staged")
    with pytest.raises(InvalidArgument, match="holds no image"):
        staged(pack(tmp_path / "empty.tar", {"a": b""}), tmp_path / "staged")


def test_a_compression_that_cannot_be_undone(tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout")
    index = json.loads((layout / "index.json").read_text())
    blobs = layout / "blobs/sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+zstd"
    text = json.dumps(manifest).encode()
    digest = hashlib.sha256(text).hexdigest()
    (blobs / digest).write_bytes(text)
    index["manifests"][0]["digest"] = f"sha256:{digest}"
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidArgument, match=r"tar\+zstd' cannot be unpacked"):
        staged(layout, tmp_path / "staged")


def test_a_truncated_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = saved(tmp_path / "saved.tar").read_bytes()
    for length in range(0, len(whole), 1024):
        path = tmp_path / f"{length}.tar"
        path.write_bytes(whole[:length])
        try:
            staged(path, tmp_path / f"staged-{length}")
        except SandboxdError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "text", [b"[]", b"{", b'{"manifests": {"a": 1}}', b'{"manifests": [{"digest": "md5:1", "size": 1}]}']
)
def test_a_malformed_index(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "index.json").write_bytes(text)
    (tmp_path / "oci-layout").write_text("{}")
    with pytest.raises(InvalidArgument, match=r"index\.json"), open_image(str(tmp_path), ""):
        pass


def test_a_reference_is_split_where_something_exists(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert split_reference(f"{tmp_path}/a:b") == (f"{tmp_path}/a:b", "")
    assert split_reference(f"{tmp_path}/a:b:c:1") == (f"{tmp_path}/a:b", "c:1")
    with pytest.raises(NotFound, match="there is no busybox"):
        split_reference("busybox")


@pytest.mark.parametrize("layers", [(), ("layer/layer.tar", "other/layer.tar")])
def test_the_configuration_tells_of_all_layers(tmp_path: Path, layers: tuple[str, ...]) -> None:
    path = saved(tmp_path / "saved.tar", layers)
    with pytest.raises(
        InvalidArgument, match=r"is damaged: it has . layers, and its configuration tells of 1"
    ):
        staged(path, tmp_path / "staged")


@pytest.mark.parametrize("layer", [OTHER, gzip.compress(OTHER)])
def test_a_layer_that_the_configuration_does_not_tell_of(tmp_path: Path, layer: bytes) -> None:
    images = [{"Config": "config.json", "RepoTags": None, "Layers": ["layer.tar"]}]
    files = {"manifest.json": json.dumps(images).encode(), "config.json": config(), "layer.tar": layer}
    with pytest.raises(InvalidArgument, match="layer 1 of 1 is not the image's own"):
        staged(pack(tmp_path / "saved.tar", files), tmp_path / "staged")


def sparse_layer() -> bytes:
    """A file of a TiB, of which the archive has nothing (tar(5), "GNU tar pax archives", 0.1)."""
    entry = tarfile.TarInfo("large")
    entry.pax_headers = {
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": str(1 << 40),
        "GNU.sparse.numblocks": "1",
    }
    return entry.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def long_header(size: int = 1 << 21) -> bytes:
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, size
    return entry.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22)


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (Layer().file("zeros", bytes(8 << 20)).done(), "layer 1 of 1 does not fit"),
        (sparse_layer(), "layer 1 of 1 does not fit"),
        (long_header(), "has a header of 2097152 bytes"),
        (LAYER + b"hidden", "goes on after its end"),
        (LAYER[:600], "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_what_a_layer_unpacks_to_is_checked_before(tmp_path: Path, layer: bytes, complaint: str) -> None:
    layout = Layout(tmp_path / "layout")
    layout.add(["large:1"], [layer], SETTINGS)
    layout.write()
    with pytest.raises(InvalidArgument, match=complaint):
        staged(
            tmp_path / "layout", tmp_path / "staged", limit_bytes=(1 << 20) if b"zeros" in layer else 1 << 30
        )


def test_a_layer_that_is_too_large_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="does not fit: of the room for images 0 MiB are left"):
        staged(saved(tmp_path / "saved.tar"), tmp_path / "staged", limit_bytes=len(LAYER) - 1)


def test_an_archive_that_is_more_than_a_list_of_files(tmp_path: Path) -> None:
    first = pack(tmp_path / "first.tar", {"a": b""}).read_bytes()[:512]
    (tmp_path / "long.tar").write_bytes(first + long_header(1 << 32))
    with pytest.raises(InvalidArgument, match="is damaged: it has a header of 4294967296 bytes"):
        staged(tmp_path / "long.tar", tmp_path / "staged")
    many = pack(tmp_path / "many.tar", {str(number): b"" for number in range(10_001)})
    with pytest.raises(InvalidArgument, match="is damaged: it has more than 10000 members"):
        staged(many, tmp_path / "staged")
