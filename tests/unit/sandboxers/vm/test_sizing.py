"""From limits to the size of a machine."""

import pytest

from common.errors import InvalidArgument
from sandboxers.pod_config import PodConfig
from sandboxers.vm.config import SizeConfig
from sandboxers.vm.sizing import MachineSize, size_of

CONFIG = SizeConfig(
    vcpus=1, vcpus_max=4, memory_mib=512, memory_min_mib=192, memory_max_mib=2048, guest_overhead_mib=96
)
ALLOWING = SizeConfig(vcpus_max=4, memory_min_mib=192, memory_max_mib=2048, annotations=True)
MIB = 1 << 20


@pytest.mark.parametrize(
    ("cpu_millis", "memory_bytes", "size"),
    [
        (0, 0, MachineSize(1, 512)),
        (1, 1, MachineSize(1, 192)),
        (1000, 128 * MIB, MachineSize(1, 224)),
        (1001, 128 * MIB + 1, MachineSize(2, 225)),
        (64000, 0, MachineSize(4, 512)),
        (0, 1952 * MIB, MachineSize(1, 2048)),
    ],
)
def test_limits_give_the_size_and_bounds_hold(cpu_millis: int, memory_bytes: int, size: MachineSize) -> None:
    assert size_of(PodConfig("pod", cpu_millis=cpu_millis, memory_bytes=memory_bytes), CONFIG) == size


def test_limits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="memory_max_mib"):
        size_of(PodConfig("pod", memory_bytes=1953 * MIB), CONFIG)


def test_annotations_choose_within_the_bounds_where_they_may() -> None:
    pod = PodConfig("pod", annotations={"sandboxd.vcpus": "3", "sandboxd.memory-mib": "1024"})
    assert size_of(pod, ALLOWING) == MachineSize(3, 1024)
    with pytest.raises(InvalidArgument, match="not allowed"):
        size_of(pod, CONFIG)


@pytest.mark.parametrize("value", ["5", "0", "-1", "1e9", "٣", "", "99999999999"])
def test_an_annotation_out_of_bounds_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"sandboxd\.vcpus"):
        size_of(PodConfig("pod", annotations={"sandboxd.vcpus": value}), ALLOWING)
