"""An upgrade to a version that writes newer records, the way back, and forward again."""

import re
import shutil
from pathlib import Path

import pytest

from common.records import read_record
from sandboxers.registry import RECORD_FILE, SandboxRecord
from tests.chaos.trial import Trial
from tests.chaos.workload import RUNNING, WRITER_EXIT_CODE, Pod, expect_lines
from tests.engine.images import CHECKOUT
from tests.engine.namespaces import wait_until

PACKAGES = ("proto", "common", "vmm", "sandboxers")
VERSION = re.compile(r"^(\s+VERSION: ClassVar\[int\] = )(\d+)$", re.MULTILINE)


class Installation:
    """Two versions of the code, and a link to the one that the next daemon runs."""

    def __init__(self, directory: Path) -> None:
        self.current = directory / "current"
        self.older, self.newer = directory / "older", directory / "newer"
        for version in (self.older, self.newer):
            for package in PACKAGES:
                shutil.copytree(CHECKOUT / package, version / package)
        raised = 0
        for source in self.newer.rglob("*.py"):
            text, count = VERSION.subn(lambda found: f"{found[1]}{int(found[2]) + 1}", source.read_text())
            if count:
                source.write_text(text)
                raised += count
        assert raised >= 3, "where the versions of records are"
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
    trial.start(code=installation.current)
    old = Pod(trial)
    old_writer = old.writer()

    installation.choose(installation.newer)
    trial.replace()
    assert old.exec(old_writer, "sh", "-c", "exit 21").exit_code == 21
    new = Pod(trial)
    new_writer = new.writer()
    version = SandboxRecord.VERSION
    assert f'"version":{version + 1},' in record_of(trial, new).read_text()
    assert f'"version":{version},' in record_of(trial, old).read_text()

    installation.choose(installation.older)
    before = record_of(trial, new).read_bytes()
    trial.replace()
    assert record_of(trial, new).read_bytes() == before
    # What the older version understands it serves, beside what it does not.
    third = Pod(trial)
    third_writer = third.writer()
    assert third.exec(third_writer, "true").exit_code == 0
    for writer in (old_writer, new_writer):
        assert writer_runs(trial, writer.log)
    assert read_record(str(record_of(trial, third)), SandboxRecord)[0].pod["sandbox_id"] == third.id
    assert trial.told == []
    log = (trial.engine.logs / "sandboxer.log").read_text()
    assert "start the version that wrote it" in log

    installation.choose(installation.newer)
    trial.replace()
    for pod, writer in ((old, old_writer), (new, new_writer), (third, third_writer)):
        assert pod.is_ready
        assert pod.status(writer).state == RUNNING
        assert pod.exec(writer, "sh", "-c", "exit 22").exit_code == 22
        assert pod.stop(writer) == WRITER_EXIT_CODE
        expect_lines(writer)
        pod.remove()
    assert trial.lost_connections() == []


def record_of(trial: Trial, pod: Pod) -> Path:
    return trial.state(pod.id, RECORD_FILE)


def writer_runs(trial: Trial, log: Path) -> bool:
    """Whether a log still grows."""
    size = log.stat().st_size
    wait_until(lambda: log.stat().st_size > size, timeout_s=5, what=f"more lines in {log.name}")
    return True
