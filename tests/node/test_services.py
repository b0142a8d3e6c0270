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
    assert inside("tests/node/inside/test_units.py", supervised=supervised) >= 6


# Without the supervisor a package is upgraded by the installer, below.
def test_pods_outlive_upgrade_and_roll_back(inside: Inside) -> None:
    assert inside("tests/node/inside/test_versions.py", supervised=True) >= 1


def test_the_package_goes_and_comes_again_beneath_pods(inside: Inside) -> None:
    assert inside("tests/node/inside/test_package.py") >= 3


def test_pods_live_in_cgroups_of_systemd_and_in_their_own(inside: Inside) -> None:
    assert inside("tests/node/inside/test_cgroups.py") >= 8
