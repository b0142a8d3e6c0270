"""The backend of modules, as far as it needs none."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

from common.cgroup import Hierarchies
from common.cgroup.locate import Hierarchy
from common.process.exits import ExitWatcher
from common.task.backend import PreparedContainer
from sandboxers.wasm.backend import WasmBackend
from sandboxers.wasm.cache import Cache
from sandboxers.wasm.compiler import Compiler
from sandboxers.wasm.config import ModulesConfig
from sandboxers.wasm.engines import EngineName
from sandboxers.wasm.fork_server import ForkServer

_LIMIT_S = 20


async def test_the_daemon_goes_on_while_the_kernel_makes_room_for_a_new_limit(tmp_path: Path) -> None:
    # Whoever writes to a FIFO waits for its reader, as for the kernel.
    (tmp_path / "c").mkdir()
    limit = tmp_path / "c/memory.limit_in_bytes"
    os.mkfifo(limit)
    loop_went_on = threading.Event()
    seen: list[object] = []

    def kernel() -> None:
        seen.append(loop_went_on.wait(_LIMIT_S))
        seen.append(limit.read_text())

    thread = threading.Thread(target=kernel)
    thread.start()
    exits, config = ExitWatcher(), ModulesConfig()
    server = ForkServer(exits, str(tmp_path), EngineName.WASMTIME, str(tmp_path))
    backend = WasmBackend(
        server,
        Compiler(config, Cache(str(tmp_path)), exits, server),
        Hierarchies({"memory": Hierarchy(str(tmp_path), "/")}),
    )
    container = PreparedContainer(str(tmp_path), str(tmp_path), (0, 0), "/c", True)
    update = asyncio.create_task(backend.update("c", container, b'{"memory": {"limit": 4096}}'))
    await asyncio.sleep(0.01)
    loop_went_on.set()
    await update
    thread.join()
    exits.close()
    assert seen == [True, "4096"]
