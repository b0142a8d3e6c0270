"""What a node lacks for VM pods is named, with the way to get it, by whoever is asked: a pod's start and `doctor`."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from tests.engine.cri import pod_config
from tests.engine.engine import OURS_IN_QEMU, PYTHON, Engine
from tests.engine.images import CHECKOUT
from tests.engine.qemu import write_config
from tests.engine.test_pods import expect_nothing_more_than, remains
from tests.guest_image import guest_image
from vmm.image.manifest import load


@pytest.fixture(scope="module")
def engine(vm_parts: None) -> Iterator[Engine]:
    """An engine whose sandboxer is not started yet."""
    with Engine() as engine:
        engine.start()
        yield engine


def image_without(part: str, directory: Path) -> Path:
    """Copy an image but for one of its files."""
    manifest = guest_image()
    for blob in load(manifest).blobs():
        if not blob.file.startswith(part):
            (directory / blob.file).symlink_to(manifest.parent / blob.file)
    return Path(shutil.copy(manifest, directory / "image.json"))


@pytest.mark.parametrize(
    ("changes", "part", "missing", "remedy"),
    [
        ({"qemu": {"qemu": "/no/such/qemu"}}, "", "/no/such/qemu", "apt-get install qemu-system-x86"),
        ({"qemu": {"virtiofsd": "/no/such/virtiofsd"}}, "", "/no/such/virtiofsd", "fetch-vm-helpers"),
        ({"qemu": {"vsock_daemon": "/no/such/vsock"}}, "", "/no/such/vsock", "fetch-vm-helpers"),
        ({"guest": {"image": "/no/such/image.json"}}, "", "/no/such/image.json", "vmm.image build"),
        ({}, "vmlinux", "vmlinux-", "vmm.image build"),
        ({}, "root", "root-", "vmm.image build"),
    ],
    ids=("qemu", "virtiofsd", "vsock daemon", "image", "kernel", "root"),
)
def test_what_is_missing_is_named_with_the_way_to_get_it(
    engine: Engine,
    tmp_path: Path,
    changes: Mapping[str, Mapping[str, object]],
    part: str,
    missing: str,
    remedy: str,
) -> None:
    if part:
        changes = {"guest": {"image": str(image_without(part, tmp_path))}}
    config = write_config(engine.directory, changes)
    engine.start_sandboxer(config)
    try:
        before = remains(engine)
        with pytest.raises(grpc.RpcError) as raised:
            engine.cri.run_pod(pod_config(host_network=False), OURS_IN_QEMU)
        command = [str(PYTHON), "-m", "sandboxctl", "--config", str(config), "doctor"]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        report = engine.namespaces.run(command, check=False, env=environment).stdout
        expect_nothing_more_than(before, engine)
    finally:
        engine.stop_sandboxer()
    for words in (missing, remedy):
        assert words in str(raised.value.details())
    assert "".join(remedy.split()) in "".join(report.split())
