"""What a container uses, as the message that an engine expects in the answer of Stats.

Contract section 3: the type is io.containerd.cgroups.v1.Metrics or .v2.Metrics, after the host's hierarchy.
Only the module of the hierarchy that is in use is loaded.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from common.cgroup.files import read_text
from common.cgroup.locate import Cgroup
from common.errors import NotFound

if TYPE_CHECKING:
    from proto.gen.cgroups.v1 import metrics_pb2 as v1
    from proto.gen.cgroups.v2 import metrics_pb2 as v2


def read_metrics(cgroup: Cgroup) -> v1.Metrics | v2.Metrics:
    """Measure a cgroup now; its `DESCRIPTOR.full_name` is the type URL. Raises NotFound where it is gone."""
    if cgroup.unified:
        from common.cgroup import stats_v2

        directory = cgroup.directory("")
        if directory is None or not os.path.isdir(directory):
            raise NotFound(f"cgroup {cgroup.path} has nothing to measure: it is gone, or the root")
        return stats_v2.metrics(lambda name: read_text(f"{directory}/{name}"))

    from common.cgroup import stats_v1

    directories = {name: cgroup.directory(name) for name in stats_v1.CONTROLLERS}

    def read(name: str) -> str | None:
        directory = directories[name.partition(".")[0]]
        return read_text(f"{directory}/{name}") if directory else None

    if read("memory.usage_in_bytes") is None and read("cpuacct.usage") is None:
        raise NotFound(f"cgroup {cgroup.path} has nothing to measure: it is gone, or the root")
    return stats_v1.metrics(read)


def read_metrics_v1(cgroup: Cgroup) -> v1.Metrics:
    """Measure a cgroup of whatever hierarchy for an engine that knows only v1. Raises NotFound where it is gone."""
    metrics = read_metrics(cgroup)
    if not cgroup.unified:
        return cast("v1.Metrics", metrics)
    from common.cgroup.stats_as_v1 import as_v1

    return as_v1(cast("v2.Metrics", metrics))
