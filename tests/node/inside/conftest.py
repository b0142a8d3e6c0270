"""sandboxd as a service of the node, installed as the README says, and its containerd."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto.gen.runtime.v1 import service_pb2 as pb
from tests.engine.cri import Cri

BUILD = Path(__file__).resolve().parents[3]
UNIT = "sandboxd@runc.service"
LAUNCHER = """\
#!/opt/sandboxd/bin/python
import sys
from sandboxers.__main__ import main
sys.exit(main())
"""


def systemctl(*arguments: str) -> str:
    """Run systemctl to its end and return its output; CalledProcessError if it fails."""
    command = ["systemctl", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout.strip()


def show(unit: str, name: str) -> str:
    """Return a property of a unit."""
    return systemctl("show", "--value", "--property", name, unit)


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """The name of the running unit."""
    Path("/etc/sandboxd").mkdir(exist_ok=True)
    shutil.copy(BUILD / "configs/runc.yaml", "/etc/sandboxd/runc.yaml")
    shutil.copy(BUILD / "configs/systemd/sandboxd@.service", "/etc/systemd/system/")
    shutil.copy(BUILD / "configs/containerd/sandboxd-runc.toml", "/etc/containerd/conf.d/")
    launcher = Path("/opt/sandboxd/bin/sandboxd")
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    systemctl("daemon-reload")
    systemctl("start", UNIT)
    systemctl("start", "containerd")
    yield UNIT
    systemctl("stop", "containerd", UNIT)


@pytest.fixture
def cri(service: str) -> Iterator[Cri]:
    """The engine's client; every pod is removed afterwards."""
    with Cri(Path("/run/containerd/containerd.sock")) as cri:
        _wait_for_answer(cri)
        yield cri
        for pod in cri.pods():
            cri.stop_pod(pod.id)
            cri.remove_pod(pod.id)


def _wait_for_answer(cri: Cri) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            cri.runtime.Status(pb.StatusRequest(), timeout=10)
            return
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
