"""Our package and units below the node's systemd, which keeps its descriptors, with the node's containerd beside it."""

from __future__ import annotations

import pytest

from tests.node.conftest import Inside

pytestmark = [pytest.mark.usefixtures("package"), pytest.mark.timeout(1800)]
both = pytest.mark.parametrize("supervised", [False, True], ids=["plain", "supervised"])


@both
def test_systemd_keeps_descriptors_as_the_daemon_needs_it(inside: Inside, supervised: bool) -> None:
    assert inside("tests/node/inside/test_descriptor_store.py", supervised=supervised) >= 13


@both
def test_pods_outlive_what_systemctl_does_to_the_daemon(inside: Inside, supervised: bool) -> None:
    suites = ("tests/node/inside/test_units.py", "tests/node/inside/test_versions.py")
    assert inside(*suites, supervised=supervised) >= 7


def test_pods_live_in_cgroups_of_systemd_and_in_their_own(inside: Inside) -> None:
    assert inside("tests/node/inside/test_cgroups.py") >= 8
