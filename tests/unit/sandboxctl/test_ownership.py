"""Which engines are asked whose a pod is."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import Unavailable
from sandboxctl.daemons import Daemon
from sandboxctl.ownership import list_owned
from sandboxers.config import EngineConfig
from sandboxers.embedded import DAEMON_CONFIG_FILE, DAEMONS, EMBEDDED_DIR
from sandboxers.engine import list_embedded
from sandboxers.isolation import IsolationType
from sandboxers.runc.config import RuncConfig

NO_ENGINE = RuncConfig(engine=EngineConfig(address=""))


async def test_a_daemon_of_the_embedded_engine_has_no_other_one() -> None:
    daemon = Daemon(IsolationType.RUNC, f"{EMBEDDED_DIR}/{DAEMONS}/runc/{DAEMON_CONFIG_FILE}", NO_ENGINE)
    assert daemon.is_private
    assert await list_owned(daemon) == list_embedded()


async def test_of_another_daemon_without_an_engine_nobody_knows(tmp_path: Path) -> None:
    daemon = Daemon(IsolationType.RUNC, f"{tmp_path}/runc.yaml", NO_ENGINE)
    assert not daemon.is_private
    with pytest.raises(Unavailable):
        await list_owned(daemon)
