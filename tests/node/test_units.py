"""sandboxd under systemd, which keeps its descriptors, with a containerd beside it."""

from __future__ import annotations

import pytest

from tests.node.conftest import Inside


@pytest.mark.timeout(600)
def test_pods_outlive_what_systemctl_does_to_the_daemon(inside: Inside) -> None:
    assert inside("tests/node/inside/test_units.py") >= 4
