"""What the tests of VM pods share: the guest image, the sandboxer's configuration, pods of the handler."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from proto.gen.runtime.v1 import service_pb2 as pb
from tests.engine.cri import TIMEOUT_S, Cri, container_config, pod_config
from tests.engine.engine import OURS_IN_QEMU, Engine
from tests.engine.images import CHECKOUT
from tests.guest_image import guest_image
from tests.node import BOOTS, ON_NODE
from vmm.hypervisors.hypervisor import Accelerator

HELPERS = CHECKOUT / ".cache/vm"
ACCELERATOR = Accelerator.KVM if ON_NODE else Accelerator.TCG


def write_config(directory: Path, changes: Mapping[str, Mapping[str, object]] | None = None) -> Path:
    """Write a configuration of the type for this machine, with the programs that the project fetches.

    Machines are emulated; on a node they are not.
    """
    settings: dict[str, object] = {
        "type": "qemu",
        "log": {"level": "debug", "format": "console"},
        "qemu": {
            "accelerator": ACCELERATOR.value,
            "virtiofsd": str(HELPERS / "virtiofsd"),
            "vsock_daemon": str(HELPERS / "vhost-device-vsock"),
        },
        "guest": {"image": str(guest_image()), "start_timeout_s": TIMEOUT_S / BOOTS},
    }
    for section, values in (changes or {}).items():
        before = settings.get(section)
        settings[section] = {**(before if isinstance(before, dict) else {}), **values}
    path = directory / "qemu.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def machine_directory(engine: Engine, pod: str) -> Path:
    """Where the sockets and logs of a pod's machine are."""
    return engine.namespaces.root / "run/sandboxd/qemu" / pod / "machine"


def information(cri: Cri, pod: str) -> dict[str, Any]:
    """What the sandboxer tells of a pod."""
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    answer: pb.PodSandboxStatusResponse = cri.runtime.PodSandboxStatus(request, timeout=20)
    told: dict[str, Any] = json.loads(answer.info["info"])
    return told


def start_vm_container(cri: Cri, *command: str, **options: object) -> tuple[str, str]:
    """One VM pod with one container; returns the ids of pod and container."""
    pod = pod_config(host_network=False)
    pod_id = cri.run_pod(pod, OURS_IN_QEMU)
    return pod_id, add_container(cri, pod_id, *command, **options)


def add_container(cri: Cri, pod_id: str, *command: str, **options: object) -> str:
    """Create and start a container in a VM pod."""
    pod = pod_config(host_network=False)
    config: pb.ContainerConfig = container_config(command or ("sleep", "1000000"), **options)  # type: ignore[arg-type]
    container = cri.create(pod_id, config, pod)
    cri.start(container)
    return container
