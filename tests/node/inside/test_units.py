"""What systemctl does to sandboxd@runc, with a pod of a real containerd running."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from proto.gen.runtime.v1 import service_pb2 as pb
from tests.engine.cri import Cri, container_config, pod_config
from tests.node.inside.conftest import show, systemctl

HANDLER = "sandboxd"
RUNNING = pb.ContainerState.CONTAINER_RUNNING
EXITED = pb.ContainerState.CONTAINER_EXITED


def running(cri: Cri, tmp_path: Path) -> str:
    """Start a container that ends with 42 when the file `end` appears in its volume."""
    pod = pod_config()
    pod_id = cri.run_pod(pod, HANDLER)
    volume = pb.Mount(container_path="/volume", host_path=str(tmp_path))
    command = ("sh", "-c", "until [ -e /volume/end ]; do sleep 0.2; done; exit 42")
    container = cri.create(pod_id, container_config(command, mounts=[volume]), pod)
    cri.start(container)
    return container


def test_the_unit_is_running_and_has_a_descriptor_store(service: str) -> None:
    assert show(service, "ActiveState") == "active"
    assert int(show(service, "FileDescriptorStoreMax")) >= 3000


@pytest.mark.parametrize(
    "way", [("restart",), ("kill", "--signal=KILL"), ("kill", "--signal=TERM")], ids=lambda way: way[-1]
)
def test_a_container_and_its_connection_outlive_the_daemon(
    service: str, cri: Cri, tmp_path: Path, way: tuple[str, ...]
) -> None:
    container = running(cri, tmp_path)
    before = show(service, "MainPID")
    assert int(show(service, "NFileDescriptorStore")) > 0
    systemctl(*way, service)
    deadline = time.monotonic() + 60
    while show(service, "MainPID") in (before, "0") or show(service, "ActiveState") != "active":
        assert time.monotonic() < deadline, "the unit did not come back"
        time.sleep(0.2)
    assert cri.container(container).state == RUNNING
    assert cri.exec(container, ["echo", "alive"]).stdout == b"alive\n"
    # Only the Wait that the engine sent before tells it the end.
    (tmp_path / "end").touch()
    while (status := cri.container(container)).state != EXITED:
        assert time.monotonic() < deadline, "the end was not told"
        time.sleep(0.2)
    assert status.exit_code == 42
