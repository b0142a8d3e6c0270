"""sandboxd as a service of the node, installed as the README says, and its containerd."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto.gen.runtime.v1 import service_pb2 as pb
from tests.chaos.kubelet import Kubelet
from tests.engine.conftest import EVIDENCE, pytest_runtest_makereport
from tests.engine.cri import Cri
from tests.engine.namespaces import wait_until
from tests.node.inside.systemd import SUPERVISED, Service, journal, systemctl

__all__ = ["pytest_runtest_makereport"]

COPY = Path(__file__).resolve().parents[3]
UNIT = "sandboxd@runc.service"
SOCKET = Path("/run/sandboxd/runc.sock")
STATE_DIR = Path("/run/sandboxd/runc")
# Where a drop-in of the package is overridden, systemd.unit(5).
SUPERVISE = Path("/etc/systemd/system/sandboxd@.service.d/supervise.conf")


class NodeKubelet(Kubelet):
    """The client of the node's containerd."""

    def __init__(self, cri: Cri, directory: Path) -> None:
        super().__init__(directory)
        self._cri = cri

    @property
    def cri(self) -> Cri:
        return self._cri


@pytest.fixture(scope="session")
def installed() -> None:
    """What the README tells to install besides the package, whose supervisor has no effect where it is not wanted."""
    for line in (COPY / "README.md").read_text().splitlines():
        if line.startswith("    install "):
            subprocess.run(shlex.split(line), cwd=COPY, check=True)
    SUPERVISE.unlink(missing_ok=True)
    if not SUPERVISED:
        SUPERVISE.parent.mkdir(exist_ok=True)
        SUPERVISE.symlink_to("/dev/null")
    systemctl("daemon-reload")


@pytest.fixture(scope="session")
def containerd(installed: None) -> Iterator[Cri]:
    """The node's containerd, which answers."""
    systemctl("start", "containerd")
    with Cri(Path("/run/containerd/containerd.sock")) as cri:

        def answers() -> bool:
            try:
                cri.runtime.Status(pb.StatusRequest(), timeout=10)
            except grpc.RpcError:
                return False
            return True

        wait_until(answers, timeout_s=120, what="containerd's CRI", interval_s=0.2)
        yield cri
    systemctl("stop", "containerd")


@pytest.fixture(scope="session")
def service(installed: None, request: pytest.FixtureRequest) -> Iterator[Service]:
    """The unit, running."""
    service = Service(UNIT, SOCKET)
    collectors = request.session.stash.setdefault(EVIDENCE, [])

    def evidence() -> str:
        return "\n".join(f"--- {unit}\n{journal(unit, 60)}" for unit in (UNIT, "containerd"))

    collectors.append(evidence)
    # Enabled, as the README says: what nothing refers to loses its descriptors when it stops.
    service("enable", "--now")
    yield service
    service("stop")
    collectors.remove(evidence)


@pytest.fixture
def kubelet(service: Service, containerd: Cri, tmp_path: Path) -> Iterator[Kubelet]:
    """A client of the engine; every pod is removed afterwards."""
    kubelet = NodeKubelet(containerd, tmp_path)
    yield kubelet
    kubelet.remove_all_pods()
