"""What is left when the package is removed while a pod runs, what comes back with it, and who else installs it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.kubelet import Kubelet
from tests.chaos.workload import Pod
from tests.engine.namespaces import wait_until
from tests.node.inside.conftest import COPY, STATE_DIR
from tests.node.inside.dpkg import dpkg, install, installed_version
from tests.node.inside.systemd import Service, systemctl
from tests.node.inside.test_units import CONFIG, pid_of, start
from tests.node.package import NEWER, OLDER, PACKAGES

PROGRAM = Path("/usr/bin/sandboxd")
# In 10 ms steps of the same clock as all others: it tells whether a pid is still the same process.
STARTED = 19


def started_at(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[STARTED]


@pytest.fixture
def installed_again(service: Service) -> Iterator[None]:
    """Afterwards the package is there and the service runs."""
    yield
    if not PROGRAM.exists():
        install(OLDER)
    service("enable", "--now")
    service.wait()


def test_what_runs_and_what_is_the_operators_outlives_the_package(
    service: Service, kubelet: Kubelet, tmp_path: Path, installed_again: None
) -> None:
    pod = Pod(kubelet)
    pid = pid_of(start(pod, tmp_path))
    process = started_at(pid)
    own = CONFIG.read_text() + "# of the operator\n"
    CONFIG.write_text(own)

    said = dpkg("--remove", "sandboxd")
    assert "containers of 1 pods go on running" in said
    assert "not empty" not in said, "something was left in a directory of the package"
    assert not Path("/usr/lib/sandboxd").exists()
    assert not os.path.lexists(PROGRAM)
    assert CONFIG.read_text() == own
    assert started_at(pid) == process

    dpkg("--purge", "sandboxd")
    assert not Path("/etc/sandboxd").exists()
    assert not list(Path("/etc/systemd/system").glob("*.wants/sandboxd@*"))
    assert (STATE_DIR / pod.id).exists()
    assert started_at(pid) == process

    # The engine has lost its connection and tells the pod's end; who knows of the rest is the next daemon.
    install(OLDER)
    service("enable", "--now")
    service.wait()
    kubelet.remove_all_pods()
    assert not (STATE_DIR / pod.id).exists()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=60, what=f"the end of {pid}")


def test_the_installer_of_the_daemonset_upgrades_and_rolls_back_beneath_pods(
    service: Service, kubelet: Kubelet, tmp_path: Path
) -> None:
    pod = Pod(kubelet)
    container = start(pod, tmp_path)
    engine_pid = systemctl("show", "--value", "--property=MainPID", "containerd")
    for version in (NEWER, OLDER):
        service.replace(partial(run_installer, version))
        assert installed_version().endswith("+newer") == (version == NEWER)
        assert pod.exec(container, "echo", "alive").stdout == b"alive\n"
    # The drop-in was there, and is as it was: nothing that the engine would have to read again.
    assert systemctl("show", "--value", "--property=MainPID", "containerd") == engine_pid


def run_installer(version: str) -> None:
    """What the container does in the node's namespaces, where this is already."""
    environment = {**os.environ, "PACKAGES": str(PACKAGES / version)}
    subprocess.run([COPY / "packaging/installer/install", "runc"], env=environment, check=True)


def test_programs_tell_what_they_are(service: Service) -> None:
    for program in ("sandboxd", "sandboxctl"):
        done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"usage: {program} ")
    shim = subprocess.run(
        ["containerd-shim-sandboxd-v1", "-info"], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert b"io.containerd.sandboxd.v1" in shim.stdout
