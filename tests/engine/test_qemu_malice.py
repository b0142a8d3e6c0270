"""What a guest can do that is out to harm its host: its pod ends with a reason, and no other notices.

The guests' image changes meanwhile: pods that run keep the one that they were started with.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.engine.conftest import running_vms
from tests.engine.cri import READY, container_config, pod_config
from tests.engine.engine import OURS_IN_QEMU, Engine
from tests.engine.images import CHECKOUT
from tests.engine.namespaces import wait_until
from tests.engine.qemu import information, start_vm_container
from tests.engine.test_pods import expect_nothing_more_than, remains, shell
from tests.guest_image import guest_image
from vmm.image.manifest import load

LYING_GUEST = CHECKOUT / "tests/vm/lying_guest.py"


class TurningImage:
    """A manifest that is that of one image now and of another later, with the files of both beside it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.path = directory / "image.json"

    def turn_to(self, manifest: Path) -> None:
        """Be this image, and take the files of the one before away."""
        for old in self.path.parent.iterdir():
            if old != self.path:
                old.unlink()
        for blob in load(manifest).blobs():
            shutil.copy(manifest.parent / blob.file, self.path.parent / blob.file)
        new = self.path.with_suffix(".new")
        shutil.copy(manifest, new)
        new.rename(self.path)


@pytest.fixture(scope="module")
def image(vm_parts: None, tmp_path_factory: pytest.TempPathFactory) -> TurningImage:
    image = TurningImage(tmp_path_factory.mktemp("image") / "guest")
    image.turn_to(guest_image())
    return image


@pytest.fixture(scope="module")
def engine(image: TurningImage, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with running_vms(request.session, {"guest": {"image": str(image.path)}}) as engine:
        yield engine


@pytest.fixture(scope="module")
def neighbour(engine: Engine, image: TurningImage) -> str:
    """A container of an honest guest; every later pod has a lying one."""
    _, container = start_vm_container(engine.cri)
    assert shell(engine.cri, container, "echo alive") == "alive"
    image.turn_to(guest_image("--agent", str(LYING_GUEST)))
    return container


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ("oversized", "an answer of 1048576 bytes"),
        ("absurd", "an answer of 4294967295 bytes"),
        ("stranger", "stream 9999"),
        ("asks", "a frame of type 1 instead of an answer"),
        ("garbage", "the answer to containerd.task.v3.StartRequest"),
        ("hangs-up", "it closed a connection"),
        ("ends", "panic"),
    ],
)
def test_a_lying_guest_ends_its_pod_and_no_other_notices(
    engine: Engine, neighbour: str, lie: str, reason: str
) -> None:
    cri = engine.cri
    before = remains(engine)
    pod = pod_config(host_network=False)
    pod_id = cri.run_pod(pod, OURS_IN_QEMU)
    container = cri.create(pod_id, container_config([lie]), pod)
    with pytest.raises(grpc.RpcError):
        cri.start(container)
    wait_until(lambda: cri.pod(pod_id).state != READY, timeout_s=20, what="the end of the pod")
    assert reason in str(information(cri, pod_id)["ended"])
    assert shell(cri, neighbour, "ls / > /dev/null; echo alive") == "alive"
    cri.stop_pod(pod_id)
    cri.remove_pod(pod_id)
    expect_nothing_more_than(before, engine)
