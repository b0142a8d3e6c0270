"""Modules under a fork server and a cache of the test's own."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from common.process.exits import ExitWatcher
from sandboxers.wasm.config import ModulesConfig
from tests.contract.task_backend import Bench
from tests.contract.wasm import Modules, make_rootfs, running_modules


@pytest.fixture
async def exits(watcher: ExitWatcher) -> ExitWatcher:
    return watcher


@pytest.fixture
def config(tmp_path: Path) -> ModulesConfig:
    return ModulesConfig(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
async def modules(exits: ExitWatcher, tmp_path: Path, config: ModulesConfig) -> AsyncIterator[Modules]:
    async with running_modules(exits, tmp_path, config) as modules:
        yield modules


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


@pytest.fixture
async def bench(modules: Modules, exits: ExitWatcher, tmp_path: Path, rootfs: Path) -> AsyncIterator[Bench]:
    (tmp_path / "bundles").mkdir()
    bench = Bench(modules.backend, exits, tmp_path / "bundles", rootfs)
    yield bench
    await bench.close()


def change_spec(bench: Bench, container_id: str, args: list[str], **linux: Any) -> Any:
    prepared = bench.prepare(container_id, args)
    path = Path(prepared.directory) / "config.json"
    spec = json.loads(path.read_text())
    spec["linux"].update(linux)
    path.write_text(json.dumps(spec))
    return prepared


async def create_prepared(bench: Bench, container_id: str, prepared: Any) -> int:
    stdio, output, _ = await bench._streams(False)
    try:
        return await bench.backend.create(container_id, prepared, stdio)
    finally:
        stdio.close()
        os.close(output)
