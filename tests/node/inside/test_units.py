"""What systemctl, and what kills, do to sandboxd@runc while a pod of a real containerd runs."""

from __future__ import annotations

import os
import platform
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from common.process.exits import UNKNOWN_EXIT_CODE
from proto.gen.runtime.v1 import service_pb2 as pb
from tests.chaos.kubelet import Kubelet
from tests.chaos.trial import LOST_CONNECTION
from tests.chaos.workload import Container, Pod
from tests.engine.cri import RUNNING, log_lines
from tests.engine.namespaces import wait_until
from tests.node.inside.systemd import SUPERVISED, Service, journal, systemctl

CONFIG = Path("/etc/sandboxd/runc.yaml")
EXIT_CODE = 42
# Ends when it is told to through its volume; says meanwhile what it reads and that it lives.
LIFE = (
    f"n=0; until [ -e /volume/end ]; do echo line $n; n=$((n+1)); sleep 0.3; done; echo end; exit {EXIT_CODE}"
)

# Whoever has a pidfd learns there how a process has ended, also one that was never its child.
KERNEL_TELLS_EXIT_CODES = tuple(map(int, platform.release().split(".")[:2])) >= (6, 15)


def start(pod: Pod, volume: Path, *, tty: bool = False) -> Container:
    """Start a container that ends with EXIT_CODE once there is a file `end` in its volume."""
    mount = pb.Mount(container_path="/volume", host_path=str(volume))
    return pod.run("sh", "-c", LIFE, name="terminal" if tty else "plain", tty=tty, mounts=[mount])


def expect_complete(container: Container) -> None:
    """Fail unless every line that it has written is in its log, in order, soon after the engine has told its end."""

    def last() -> list[str]:
        return [line.rstrip("\r") for line in log_lines(container.log)[-1:]]

    wait_until(lambda: last() == ["end"], timeout_s=20, what=f"the end of {container.log}")
    *lines, end = [line.rstrip("\r") for line in log_lines(container.log)]
    assert (lines, end) == ([f"line {number}" for number in range(len(lines))], "end")


WAYS: dict[str, Callable[[Service], object]] = {
    "restart": lambda service: service("restart"),
    "reload": lambda service: service("reload"),
    "stop and start": lambda service: service.stop_and_start(),
    "kill -9 of the main process": lambda service: service("kill", "--kill-whom=main", "--signal=KILL"),
    "SIGTERM to the main process": lambda service: service("kill", "--kill-whom=main", "--signal=TERM"),
    "kill -9 of the daemon": lambda service: service.kill_daemon(),
}
# With those the supervisor, which is the containers' parent, stays what it is.
KEEPS_PARENT = ("reload", "kill -9 of the daemon")
# Without one there is nothing to reload, and the daemon is the main process.
WAYS_HERE = [way for way in WAYS if SUPERVISED or way not in KEEPS_PARENT]


@pytest.mark.parametrize("way", WAYS_HERE)
def test_containers_and_their_connections_outlive(
    service: Service, kubelet: Kubelet, tmp_path: Path, way: str
) -> None:
    pod = Pod(kubelet)
    containers = [start(pod, tmp_path, tty=tty) for tty in (False, True)]
    assert service.stored > 0
    service.replace(lambda: WAYS[way](service))
    assert pod.is_ready
    for container in containers:
        assert pod.status(container).state == RUNNING
        assert pod.exec(container, "echo", "alive").stdout == b"alive\n"
        size = container.log.stat().st_size
        wait_until(
            lambda container=container, size=size: container.log.stat().st_size > size,
            timeout_s=60,
            what=f"more lines in {container.log}",
        )
    # Only the Wait that the engine sent before tells it the end.
    (tmp_path / "end").touch()
    known = KERNEL_TELLS_EXIT_CODES or (SUPERVISED and way in KEEPS_PARENT)
    for container in containers:
        assert pod.exit_code(container) == (EXIT_CODE if known else UNKNOWN_EXIT_CODE)
        expect_complete(container)
    assert not LOST_CONNECTION.search(journal("containerd"))


def test_what_ends_while_no_daemon_can_start_has_ended_with_its_code(
    service: Service, kubelet: Kubelet, tmp_path: Path
) -> None:
    pod = Pod(kubelet)
    container = start(pod, tmp_path)
    ends = os.pidfd_open(pid_of(container))
    text = CONFIG.read_text()
    try:
        CONFIG.write_text("no_such_key: 1\n")
        service.kill_daemon()
        wait_until(lambda: "no_such_key" in journal(service.unit), timeout_s=60, what="a daemon that fails")
        (tmp_path / "end").touch()
        assert select.select([ends], [], [], 60)[0], "the container has not ended"
    finally:
        CONFIG.write_text(text)
        os.close(ends)
    service.wait()
    known = KERNEL_TELLS_EXIT_CODES or SUPERVISED
    assert pod.exit_code(container) == (EXIT_CODE if known else UNKNOWN_EXIT_CODE)
    expect_complete(container)
    assert not LOST_CONNECTION.search(journal("containerd"))


def pid_of(container: Container) -> int:
    """The pid of its first process."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (
                    container.id in (process / "cgroup").read_text()
                    and (process / "comm").read_text() == "sh\n"
                ):
                    return int(process.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
    raise ProcessLookupError(f"container {container.id} does not run")


def test_the_unit_is_as_it_is_shipped(service: Service) -> None:
    assert int(service.show("FileDescriptorStoreMax")) >= 3000
    assert service.show("Delegate") == "yes"
    assert systemctl("is-enabled", service.unit) == "enabled"
