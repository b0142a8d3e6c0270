"""An upgrade to a version that writes newer records, the way back, and forward again."""

import shutil
from pathlib import Path

import pytest

from tests.chaos.trial import Trial
from tests.chaos.versions import PACKAGES, raise_record_versions, upgrade_roll_back_and_upgrade
from tests.engine.images import CHECKOUT


class Installation:
    """Two versions of the code, and a link to the one that the next daemon runs."""

    def __init__(self, directory: Path) -> None:
        self.current = directory / "current"
        self.older, self.newer = directory / "older", directory / "newer"
        for version in (self.older, self.newer):
            for package in PACKAGES:
                shutil.copytree(CHECKOUT / package, version / package)
        raise_record_versions(self.newer)
        self.current.symlink_to(self.older)

    def choose(self, version: Path) -> None:
        new = self.current.with_name("new")
        new.symlink_to(version)
        new.rename(self.current)


@pytest.fixture
def installation(trial: Trial) -> Installation:
    return Installation(trial.directory)


def test_a_version_that_writes_newer_records_can_come_go_and_come_again(
    trial: Trial, installation: Installation
) -> None:
    def use(version: Path) -> None:
        installation.choose(version)
        trial.replace()

    trial.start(code=installation.current)
    upgrade_roll_back_and_upgrade(
        trial, trial.state(), lambda: use(installation.newer), lambda: use(installation.older)
    )
    assert "start the version that wrote it" in (trial.engine.logs / "sandboxer.log").read_text()
    assert trial.told == []
    assert trial.lost_connections() == []
