"""Upgrade, roll-back and upgrade through dpkg, with pods of a real containerd running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.process.exits import UNKNOWN_EXIT_CODE
from tests.chaos.kubelet import Kubelet
from tests.chaos.trial import LOST_CONNECTION
from tests.chaos.versions import upgrade_roll_back_and_upgrade
from tests.node.inside.conftest import STATE_DIR
from tests.node.inside.dpkg import install, installed_version
from tests.node.inside.systemd import SUPERVISED, Service, journal
from tests.node.inside.test_units import KERNEL_TELLS_EXIT_CODES
from tests.node.package import NEWER, OLDER


@pytest.fixture
def older_again(service: Service, kubelet: Kubelet) -> Iterator[None]:
    """Afterwards there is no pod, and the older version is in use."""
    yield
    if not installed_version().endswith("+newer"):
        use(service, NEWER)
    kubelet.remove_all_pods()
    use(service, OLDER)


def use(service: Service, version: str) -> None:
    """Install this version, as an upgrade or the way back, and wait for its daemon."""
    service.replace(lambda: install(version))


def test_a_version_that_writes_newer_records_can_come_go_and_come_again(
    service: Service, kubelet: Kubelet, older_again: None
) -> None:
    replaced_before = journal(service.unit).count("supervisor.replaced")

    upgrade_roll_back_and_upgrade(
        kubelet,
        STATE_DIR,
        lambda: use(service, NEWER),
        lambda: use(service, OLDER),
        exit_code=None if SUPERVISED or KERNEL_TELLS_EXIT_CODES else UNKNOWN_EXIT_CODE,
    )
    log = journal(service.unit)
    assert "start the version that wrote it" in log
    assert log.count("supervisor.replaced") - replaced_before == (3 if SUPERVISED else 0)
    assert not LOST_CONNECTION.search(journal("containerd"))
