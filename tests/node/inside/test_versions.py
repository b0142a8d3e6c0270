"""Upgrade, roll-back and upgrade through systemctl, as the README says, with pods of a real containerd running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.process.exits import UNKNOWN_EXIT_CODE
from tests.chaos.kubelet import Kubelet
from tests.chaos.trial import LOST_CONNECTION
from tests.chaos.versions import upgrade_roll_back_and_upgrade
from tests.node.inside.conftest import STATE_DIR
from tests.node.inside.systemd import SUPERVISED, Service, journal
from tests.node.inside.test_units import KERNEL_TELLS_EXIT_CODES

IN_USE = Path("/opt/sandboxd")


@pytest.fixture
def older_again(service: Service, kubelet: Kubelet) -> Iterator[None]:
    """Afterwards there is no pod, and the older version is in use."""
    yield
    turn_link("newer")
    service.replace(lambda: service("restart"))
    kubelet.remove_all_pods()
    turn_link("older")


def turn_link(version: str) -> None:
    """Let what is started from now on be of this version."""
    new = IN_USE.with_name("sandboxd.new")
    new.symlink_to(f"{IN_USE}-{version}")
    new.rename(IN_USE)


def test_a_version_that_writes_newer_records_can_come_go_and_come_again(
    service: Service, kubelet: Kubelet, older_again: None
) -> None:
    verb = "reload" if SUPERVISED else "restart"
    replaced_before = journal(service.unit).count("supervisor.replaced")

    def use(version: str) -> None:
        turn_link(version)
        service.replace(lambda: service(verb))

    upgrade_roll_back_and_upgrade(
        kubelet,
        STATE_DIR,
        lambda: use("newer"),
        lambda: use("older"),
        exit_code=None if SUPERVISED or KERNEL_TELLS_EXIT_CODES else UNKNOWN_EXIT_CODE,
    )
    log = journal(service.unit)
    assert "start the version that wrote it" in log
    assert log.count("supervisor.replaced") - replaced_before == (3 if SUPERVISED else 0)
    assert not LOST_CONNECTION.search(journal("containerd"))
