"""The parts of a configuration that all types of virtual machines have."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import absolute_path, option
from vmm.image.manifest import DEFAULT_PATH


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """What runs inside of the virtual machines."""

    image: str = option(
        DEFAULT_PATH,
        "The manifest of the guest image (kernel and root file system), which `python -m vmm.image build` makes, with"
        " the Python of sandboxd. Pods that run keep the image that they were started with.",
        check=absolute_path,
    )
    kernel_arguments: str = option("", "What is added to the guest kernel's command line.")
    start_timeout_s: float = option(
        60.0,
        "How long a guest may take from its start until its agent answers.",
        minimum=1.0,
        maximum=600.0,
    )


@dataclass(frozen=True, slots=True)
class SizeConfig:
    """How large virtual machines are. A pod whose containers have limits gets what they sum up to."""

    vcpus: int = option(1, "Processors of a pod without CPU limits.", minimum=1, maximum=255)
    vcpus_max: int = option(
        16, "The most that a pod gets; CPU limits beyond are cut.", minimum=1, maximum=255
    )
    memory_mib: int = option(512, "Memory of a pod without memory limits.", minimum=128)
    memory_min_mib: int = option(192, "The least that a pod gets: a guest needs it to boot.", minimum=128)
    memory_max_mib: int = option(
        65536, "The most that a pod gets; memory limits beyond are refused.", minimum=128
    )
    guest_overhead_mib: int = option(
        96, "What the guest's kernel and agent need on top of the containers' memory limits.", minimum=0
    )
    slots: int = option(
        16,
        "How many devices (network, volumes) a virtual machine can have besides its root disk.",
        minimum=4,
        maximum=30,
    )
    annotations: bool = option(
        False,
        "Whether pods may choose with the annotations sandboxd.vcpus and sandboxd.memory-mib, up to the maxima.",
    )
