"""The suites that need root, on the unified cgroup hierarchy and on a kernel that tells no exits of others."""

from __future__ import annotations

import pytest

from tests.node.conftest import Inside

DAEMON = "tests/integration/daemon"


@pytest.mark.timeout(900)
def test_mounts_and_namespaces_work_on_the_node(inside: Inside) -> None:
    assert inside("tests/integration/common") > 80


@pytest.mark.timeout(600)
def test_unified_cgroups_are_measured_watched_and_ended(inside: Inside) -> None:
    assert inside("tests/integration/common_cgroup") > 20


# Not test_endurance, test_start_failures, test_bad_weather and most of test_bad_input: hundreds of pods whose
# fate depends on our own code alone, which takes half an hour here and a minute outside.
@pytest.mark.timeout(1200)
def test_a_daemon_runs_pods_on_the_node(inside: Inside) -> None:
    passed = inside(
        f"{DAEMON}/test_task_methods.py",
        f"{DAEMON}/test_restart.py",
        in_root_cgroup=True,
    )
    assert passed > 20
