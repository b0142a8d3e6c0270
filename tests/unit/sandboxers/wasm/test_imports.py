"""Engines are for those who run modules: the daemon never has one, nor does the server have what it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_daemon_loads_no_engine() -> None:
    loaded = loaded_by("import sandboxers.daemon, sandboxers.wasm.sandboxer")
    assert "sandboxers.wasm.backend" in loaded
    assert (
        not {"wasmtime", "sandboxers.wasm.engines.libwasmtime", "sandboxers.wasm.engines.wasmedge"} & loaded
    )


def test_the_fork_server_loads_nothing_of_the_daemons() -> None:
    loaded = loaded_by("import sandboxers.wasm.fork_server_main, sandboxers.wasm.engines.wasmtime")
    assert "sandboxers.wasm.engines.libwasmtime" in loaded
    assert (
        not {"wasmtime", "google.protobuf", "grpc", "asyncio", "structlog", "yaml", "psutil", "threading"}
        & loaded
    )
