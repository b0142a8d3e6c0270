"""Images are found, checked and replaced; whoever asks for one that is not there is told how to get it."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import FailedPrecondition, NotFound
from vmm.image import manifest
from vmm.image.__main__ import main
from vmm.image.manifest import Blob, Ingredient, Manifest


def made_image(directory: Path, *, content: bytes = b"root", ramdisk: bool = True) -> Manifest:
    """Put the files of a small image into a directory, without a manifest."""
    blobs = {}
    for kind, data in (("vmlinux", b"kernel"), ("ramdisk", b"modules"), ("root", content)):
        source = directory / f"new-{kind}"
        source.write_bytes(data)
        blobs[kind] = manifest.add_blob(directory, source, kind)
    return Manifest(
        name="cloud-1",
        architecture=os.uname().machine,
        kernel=blobs["vmlinux"],
        kernel_release="6.1.0",
        kernel_modules=("virtio_blk",),
        kernel_arguments=("cryptomgr.notests",),
        ramdisk=blobs["ramdisk"] if ramdisk else None,
        root=blobs["root"],
        root_file_system="erofs",
        init=("/usr/bin/python3", "-I", "/agent.pyc"),
        agent="vmm.agent.__main__",
        agent_sha256="0" * 64,
        python="3.11",
        python_modules=("os", "vmm.agent"),
        ingredients=(Ingredient("crun", "1.8.1-1", "1" * 64),),
    )


@pytest.fixture
def written(tmp_path: Path) -> Manifest:
    made = made_image(tmp_path)
    manifest.write(tmp_path, made, "cloud")
    return made


def test_an_image_is_found_by_either_of_its_names(tmp_path: Path, written: Manifest) -> None:
    for name in ("cloud-1.json", "cloud.json"):
        image = manifest.load(tmp_path / name)

        image.verify()
        assert image.manifest == written
        assert image.kernel.read_bytes() == b"kernel"
        assert image.ramdisk is not None and image.ramdisk.read_bytes() == b"modules"
        assert image.root.read_bytes() == b"root"


def test_an_image_may_have_no_ramdisk(tmp_path: Path) -> None:
    manifest.write(tmp_path, made_image(tmp_path, ramdisk=False), "monolithic")

    assert manifest.load(tmp_path / "monolithic.json").ramdisk is None


def test_the_command_line_keeps_what_init_gets_at_its_end(tmp_path: Path, written: Manifest) -> None:
    image = manifest.load(tmp_path / "cloud.json")

    assert image.command_line(["quiet", "panic=-1"]) == (
        "root=/dev/vda rootfstype=erofs ro cryptomgr.notests init=/usr/bin/python3 quiet panic=-1 -- -I /agent.pyc"
    )


def test_a_missing_image_names_the_command_that_builds_it(tmp_path: Path) -> None:
    command = f"`{sys.executable} -m vmm.image build --directory {tmp_path}`"
    with pytest.raises(NotFound, match=rf"no guest image .*/cloud\.json: .*{re.escape(command)}"):
        manifest.load(tmp_path / "cloud.json")


@pytest.mark.parametrize("kind", ["kernel", "ramdisk", "root"])
def test_a_missing_file_is_named(tmp_path: Path, written: Manifest, kind: str) -> None:
    blob: Blob = getattr(written, kind)
    (tmp_path / blob.file).unlink()

    with pytest.raises(NotFound, match=rf"{blob.file} is missing: .*vmm\.image build"):
        manifest.load(tmp_path / "cloud.json")


def test_a_file_of_another_size_is_told_at_once(tmp_path: Path, written: Manifest) -> None:
    path = tmp_path / written.root.file
    path.chmod(0o644)
    path.write_bytes(b"longer than it was")

    with pytest.raises(FailedPrecondition, match=f"{written.root.file} is not what its manifest says"):
        manifest.load(tmp_path / "cloud.json")


def test_a_file_of_other_content_is_told_when_it_is_read(tmp_path: Path, written: Manifest) -> None:
    path = tmp_path / written.kernel.file
    path.chmod(0o644)
    path.write_bytes(b"KERNEL")
    image = manifest.load(tmp_path / "cloud.json")

    with pytest.raises(FailedPrecondition, match=f"{written.kernel.file} is not what its manifest says"):
        image.verify()


def test_a_manifest_names_files_beside_it_alone(tmp_path: Path, written: Manifest) -> None:
    elsewhere = dataclasses.replace(written.root, file="../root")
    manifest.write(tmp_path, dataclasses.replace(written, root=elsewhere), "cloud")

    with pytest.raises(FailedPrecondition, match=r"'\.\./root' is not a name"):
        manifest.load(tmp_path / "cloud.json")


def _another_version(data: dict[str, object]) -> None:
    data["version"] = manifest.VERSION + 1


def _without_a_kernel(data: dict[str, object]) -> None:
    del data["kernel"]


def _with_what_is_unknown(data: dict[str, object]) -> None:
    data["color"] = "blue"


def _with_a_root_that_is_a_word(data: dict[str, object]) -> None:
    data["root"] = "word"


@pytest.mark.parametrize(
    "spoil", [_another_version, _without_a_kernel, _with_what_is_unknown, _with_a_root_that_is_a_word]
)
def test_a_manifest_that_is_not_understood_is_refused(
    tmp_path: Path, written: Manifest, spoil: Callable[[dict[str, object]], None]
) -> None:
    path = tmp_path / "cloud-1.json"
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))

    with pytest.raises(FailedPrecondition, match=r"cloud\.json is not usable .*vmm\.image build"):
        manifest.load(tmp_path / "cloud.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cloud.json"
    path.write_text(text)

    with pytest.raises(FailedPrecondition, match="is not usable"):
        manifest.load(path)


def test_an_image_of_another_architecture_is_refused(tmp_path: Path) -> None:
    made = dataclasses.replace(made_image(tmp_path), architecture="riscv64")
    manifest.write(tmp_path, made, "cloud")

    with pytest.raises(FailedPrecondition, match="is for riscv64, this machine is"):
        manifest.load(tmp_path / "cloud.json")


def test_what_runs_from_an_image_keeps_its_files_when_a_new_one_comes(
    tmp_path: Path, written: Manifest
) -> None:
    before = manifest.load(tmp_path / "cloud.json")
    with before.root.open("rb") as running:
        after = dataclasses.replace(made_image(tmp_path, content=b"another root"), name="cloud-2")
        manifest.write(tmp_path, after, "cloud")

        before.verify()
        assert running.read() == b"root"
    assert manifest.load(tmp_path / "cloud.json").root.read_bytes() == b"another root"
    assert before.kernel == manifest.load(tmp_path / "cloud.json").kernel


def test_what_a_newer_image_has_replaced_is_removed_and_nothing_else(
    tmp_path: Path, written: Manifest
) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "root-of-something").touch()
    after = dataclasses.replace(made_image(tmp_path, content=b"another root"), name="cloud-2")
    manifest.write(tmp_path, after, "cloud")

    removed = manifest.prune(tmp_path)

    assert [path.name for path in removed] == ["cloud-1.json", written.root.file]
    manifest.load(tmp_path / "cloud.json").verify()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("downloads", "notes.json", "root-of-something", "cloud.json", "cloud-2.json"),
        *(after.kernel.file, after.root.file, written.ramdisk.file if written.ramdisk else ""),
    }
    assert manifest.prune(tmp_path) == []


def test_what_is_not_understood_keeps_its_files(tmp_path: Path, written: Manifest) -> None:
    path = tmp_path / "cloud-1.json"
    data = json.loads(path.read_text())
    _another_version(data)
    path.write_text(json.dumps(data))
    (tmp_path / "cloud.json").unlink()

    assert manifest.prune(tmp_path) == []
    assert (tmp_path / written.root.file).exists()


def test_what_a_hypervisor_is_given_can_be_seen(
    tmp_path: Path, written: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(tmp_path / "cloud.json")]) == 0

    shown = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    image = manifest.load(tmp_path / "cloud.json")
    assert shown == {
        "kernel": str(image.kernel),
        "ramdisk": str(image.ramdisk),
        "root": str(image.root),
        "arguments": image.command_line(),
    }
