"""How large a pod's virtual machine is: from its containers' limits, within the bounds of the configuration."""

from __future__ import annotations

from typing import Final, NamedTuple

from common.errors import InvalidArgument
from sandboxers.pod_config import PodConfig
from sandboxers.vm.config import SizeConfig

VCPUS_ANNOTATION: Final = "sandboxd.vcpus"
MEMORY_ANNOTATION: Final = "sandboxd.memory-mib"

_MIB: Final = 1 << 20


class MachineSize(NamedTuple):
    """What a machine gets."""

    vcpus: int
    memory_mib: int


def size_of(pod: PodConfig, config: SizeConfig) -> MachineSize:
    """Return the size for a pod.

    Limits say what containers may use, so the guest's own needs come on top; a pod without limits gets the default.

    :raise InvalidArgument: an annotation is malformed, not allowed, or out of bounds.
    """
    vcpus = -(-pod.cpu_millis // 1000) if pod.cpu_millis else config.vcpus
    memory_mib = (
        -(-pod.memory_bytes // _MIB) + config.guest_overhead_mib if pod.memory_bytes else config.memory_mib
    )
    vcpus = _annotated(pod, VCPUS_ANNOTATION, config, config.vcpus_max) or min(vcpus, config.vcpus_max)
    if memory_mib > config.memory_max_mib and pod.memory_bytes:
        raise InvalidArgument(
            f"pod {pod.sandbox_id}: its limits ask for a machine of {memory_mib} MiB, allowed are "
            f"{config.memory_max_mib} (size.memory_max_mib)"
        )
    memory_mib = _annotated(pod, MEMORY_ANNOTATION, config, config.memory_max_mib) or memory_mib
    return MachineSize(vcpus, max(memory_mib, config.memory_min_mib))


def _annotated(pod: PodConfig, name: str, config: SizeConfig, maximum: int) -> int:
    text = pod.annotations.get(name)
    if text is None:
        return 0
    if not config.annotations:
        raise InvalidArgument(
            f"pod {pod.sandbox_id}: the annotation {name} is not allowed (size.annotations)"
        )
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0
    if not 0 < value <= maximum:
        raise InvalidArgument(
            f"pod {pod.sandbox_id}: {name}={text[:20]!r} is not a number from 1 to {maximum}"
        )
    return value
