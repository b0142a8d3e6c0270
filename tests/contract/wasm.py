"""What tests of the wasm type share that have a fork server in their own process."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from common.cgroup import Hierarchies
from common.process.exits import ExitWatcher
from sandboxers.wasm.backend import WasmBackend
from sandboxers.wasm.cache import Cache
from sandboxers.wasm.compiler import Compiler
from sandboxers.wasm.config import ModulesConfig
from sandboxers.wasm.fork_server import ForkServer
from tests.children import command_lines
from tests.modules import module
from tests.settling import LIMIT_S

APPLETS = ("sh", "sleep", "cat", "true")


@dataclass(frozen=True, slots=True)
class Modules:
    """A backend for modules, and what it consists of."""

    backend: WasmBackend
    server: ForkServer
    cache: Cache
    compiler: Compiler


@asynccontextmanager
async def running_modules(
    exits: ExitWatcher, state_dir: Path, config: ModulesConfig
) -> AsyncIterator[Modules]:
    """A backend with a fork server of its own, which is gone in the end with all that it keeps ahead."""
    cache = Cache(config.cache_dir, config.cache_size_mib << 20)
    cache.prepare()
    server = ForkServer(exits, str(state_dir), config.engine, config.cache_dir)
    await server.start()
    compiler = Compiler(config, cache, exits, server)
    try:
        yield Modules(WasmBackend(server, compiler, Hierarchies.read()), server, cache, compiler)
    finally:
        await compiler.close()
        server.close()
        await forked_processes_end()


def make_rootfs(directory: Path) -> Path:
    """Make a root with the modules that the contract of task backends calls."""
    (directory / "bin").mkdir(parents=True)
    for name in APPLETS:
        shutil.copy(module("sh"), directory / "bin" / name)
    return directory


async def forked_processes_end() -> None:
    """Return when the fork server and all that was forked from it have ended and were reaped."""
    async with asyncio.timeout(LIMIT_S):
        while any(not line or b"sandboxers.wasm" in line for line in command_lines().values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
