"""A version of this code that writes newer records, and what has to outlive its coming and going."""

import re
from collections.abc import Callable
from pathlib import Path

from common.records import read_record
from sandboxers.records import RECORD_FILE, SandboxRecord
from tests.chaos.kubelet import Kubelet
from tests.chaos.workload import Container, Pod, expect_lines
from tests.engine.cri import RUNNING
from tests.engine.namespaces import wait_until

PACKAGES = ("proto", "common", "vmm", "sandboxers")
_VERSION = re.compile(r"^(\s+VERSION: ClassVar\[int\] = )(\d+)$", re.MULTILINE)


def raise_record_versions(directory: Path) -> None:
    """Make of the packages in a directory a version whose records are newer, though nothing else is."""
    raised = 0
    for source in (path for package in PACKAGES for path in (directory / package).rglob("*.py")):
        text, count = _VERSION.subn(lambda found: f"{found[1]}{int(found[2]) + 1}", source.read_text())
        if count:
            source.write_text(text)
            raised += count
    assert raised >= 3, "where the versions of records are"


def upgrade_roll_back_and_upgrade(
    kubelet: Kubelet,
    state_dir: Path,
    use_newer: Callable[[], None],
    use_older: Callable[[], None],
    *,
    exit_code: int | None = None,
) -> None:
    """Let the daemon, which is of the older version, be replaced three times while pods run.

    `exit_code` is what is told of a container whose daemon has been replaced: its own, where that can be known.
    """

    def record_of(pod: Pod) -> Path:
        return state_dir / pod.id / RECORD_FILE

    old = Pod(kubelet)
    old_writer = old.writer()

    use_newer()
    old.expect_exec(old_writer, 21)
    new = Pod(kubelet)
    new_writer = new.writer()
    version = SandboxRecord.VERSION
    assert f'"version":{version + 1},' in record_of(new).read_text()
    assert f'"version":{version},' in record_of(old).read_text()

    before = record_of(new).read_bytes()
    use_older()
    assert record_of(new).read_bytes() == before
    # What the older version understands it serves, beside what it does not.
    third = Pod(kubelet)
    third_writer = third.writer()
    assert third.exec(third_writer, "true").exit_code == 0
    for writer in (old_writer, new_writer):
        _expect_more_lines(writer)
    assert read_record(str(record_of(third)), SandboxRecord)[0].pod["sandbox_id"] == third.id

    use_newer()
    for pod, writer in ((old, old_writer), (new, new_writer), (third, third_writer)):
        assert pod.is_ready
        assert pod.status(writer).state == RUNNING
        pod.expect_exec(writer, 22)
        assert pod.stop(writer) == (exit_code or pod.programs.stopped_code)
        expect_lines(writer, pod.programs)
        pod.remove()


def _expect_more_lines(writer: Container) -> None:
    size = writer.log.stat().st_size
    wait_until(
        lambda: writer.log.stat().st_size > size, timeout_s=20, what=f"more lines in {writer.log.name}"
    )
