"""A pod of which something on record cannot be understood is left exactly as it is."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.cgroup import Hierarchies
from common.errors import FailedPrecondition, SandboxdError
from common.journal import ConnectionJournal
from common.process.exits import ExitWatcher
from common.records import UnreadableRecord, write_record
from common.task.events import NullSink
from sandboxers.pod_config import PodConfig
from sandboxers.qemu.config import QemuConfig
from sandboxers.qemu.driver import driver_of
from sandboxers.vm.containers import ContainerRecord, PidSource
from sandboxers.vm.sandbox import VmSandbox, VmSettings
from tests.descriptor_store import KeptInMemory
from vmm.hypervisors.record import MachineRecord

GROUP = "p1"


@pytest.fixture
def store() -> Iterator[KeptInMemory]:
    store = KeptInMemory()
    for name in (GROUP, "v2"):
        with socket.socket(socket.AF_UNIX) as sock:
            store.put(name, [sock.fileno()])
    store.restart()
    yield store
    store.close()


@pytest.mark.parametrize("damaged", ["machine/machine.json", "containers/one/container.json"])
@pytest.mark.parametrize("how", ["torn", "newer"])
async def test_nothing_is_touched(tmp_path: Path, store: KeptInMemory, damaged: str, how: str) -> None:
    (tmp_path / "machine").mkdir()
    (tmp_path / "containers/one").mkdir(parents=True)
    container = ContainerRecord("one", "/bundle", 1, False, "", "/stdout", "", ["", "v2", ""], [])
    write_record(f"{tmp_path}/containers/one/container.json", container)
    write_record(f"{tmp_path}/machine/machine.json", MachineRecord("hvsock:///nowhere"))
    path = tmp_path / damaged
    text = path.read_text()
    path.write_text(text[:-10] if how == "torn" else json.dumps({**json.loads(text), "version": 99}))
    before = sorted(os.listdir(tmp_path))
    exits = ExitWatcher()
    config = QemuConfig(state_dir=str(tmp_path))
    driver = driver_of(config, exits)
    journal = ConnectionJournal(f"{tmp_path}/journal", store)
    settings = VmSettings(
        config.guest, config.size, 64, 1.0, False, False, Hierarchies.read(), journal, store, NullSink(), PidSource(),
    )  # fmt: skip
    sandbox = VmSandbox(PodConfig(sandbox_id="pod"), str(tmp_path), GROUP, driver, settings)
    expected: type[SandboxdError] = UnreadableRecord if how == "torn" else FailedPrecondition
    with pytest.raises(expected, match=path.name):
        await sandbox.recover(lambda *_: None, running=True)
    assert set(store.untaken()) == {GROUP, "v2"}
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "journal"])
    journal.close()
    driver.close()
    exits.close()
