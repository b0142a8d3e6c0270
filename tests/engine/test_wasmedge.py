"""WasmEdge, the other engine of modules: what it does as wasmtime does, and what it does not."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto.gen.runtime.v1 import api_pb2 as api
from tests.bench.interpreter import copy_interpreter, copy_interpreter_with_wasmedge
from tests.engine.cri import Cri
from tests.engine.engine import Engine
from tests.engine.handlers import WASM
from tests.engine.module_pods import ModulePod
from tests.engine.namespaces import wait_until
from tests.engine.streaming import exec_piped
from tests.modules import module

TRAPPED = 134


def config_with(directory: Path, engine: str) -> Path:
    """The usual configuration, but for the engine of modules."""
    text = WASM.config.read_text()
    assert text.count("\n  engine: wasmtime\n") == 1
    path = directory / f"{engine}.yaml"
    path.write_text(text.replace("\n  engine: wasmtime\n", f"\n  engine: {engine}\n"))
    return path


def is_compiled(engine: Engine, name: str) -> bool:
    """Tell whether there is native code of a module."""
    digest = hashlib.sha256(module(name).read_bytes()).hexdigest()
    names = os.listdir(engine.namespaces.root / "var/cache/sandboxd/wasm")
    return any(entry.startswith(f"{digest}-core-") and not entry.endswith("-draft") for entry in names)


@pytest.fixture(scope="module")
def engine(parts: None) -> Iterator[Engine]:
    """An engine whose sandboxer has WasmEdge."""
    with Engine(WASM) as engine:
        engine.start()
        python = copy_interpreter_with_wasmedge(engine.directory / "python")
        engine.start_sandboxer(config_with(engine.directory, "wasmedge"), python=python)
        yield engine


@pytest.fixture
def pod(cri: Cri, tmp_path: Path) -> ModulePod:
    return ModulePod(cri, tmp_path)


def test_what_is_interpreted_at_first_is_compiled_for_the_next_start(engine: Engine, pod: ModulePod) -> None:
    assert not is_compiled(engine, "show")
    first = pod.run("/show.wasm", "one", name="first")
    wait_until(lambda: is_compiled(engine, "show"), timeout_s=20, what="native code")
    second = pod.run("/show.wasm", "one", name="second")
    assert (first.code, first.lines) == (second.code, second.lines) == (0, first.lines)


def test_modules_run_with_their_arguments_outputs_and_exit_codes(pod: ModulePod) -> None:
    assert pod.run("/hello.wasm", name="hello") == (0, ["hello from wasm"], "Completed")
    assert pod.run("/say.wasm", "out", "err", "42", name="say").code == 42
    shown = pod.run("/show.wasm", "one", "two words", name="show", env={"NAME": "a=b c"}).lines
    assert {"argument one", "argument two words", "variable NAME=a=b c"} <= set(shown)
    assert pod.run("/lines.wasm", "100", "10", "1000", name="lines").lines == [
        f"line {n}" for n in range(1000)
    ]


def test_exec_and_files_and_standard_input(engine: Engine, pod: ModulePod) -> None:
    container = pod.start("/sleeper.wasm")
    assert pod.cri.exec(container, ["/files.wasm", "write", "/tmp/file", "text"]).exit_code == 0
    assert pod.cri.exec(container, ["/files.wasm", "read", "/tmp/file"]).stdout == b"text"
    assert pod.cri.exec(container, ["/files.wasm", "read", "../../etc/passwd"]).exit_code != 0
    with exec_piped(engine, container, "/cat.wasm", "6") as piped:
        output, _ = piped.communicate(b"some text\n", timeout=20)
    assert (output, piped.returncode) == (b"some text\n", 6)
    pod.cri.stop_container(container, grace_s=20)
    assert pod.outcome(container).code == 143


def test_a_trap_says_why_and_memory_ends_at_the_limit(engine: Engine, pod: ModulePod) -> None:
    trapped = pod.run("/trap.wasm", name="trap")
    assert (trapped.code, trapped.lines) == (TRAPPED, ["wasm trap: unreachable"])
    limit = api.LinuxContainerResources(memory_limit_in_bytes=128 << 20)
    assert pod.run("/grow.wasm", name="grow", resources=limit).code in (3, 137)
    # Interpreted it ends at the limit too; compiled it has no guard of its own, and the kernel ends the process.
    assert pod.run("/recurse.wasm", name="interpreted", resources=limit).code in (TRAPPED, 137)
    wait_until(lambda: is_compiled(engine, "recurse"), timeout_s=20, what="native code")
    assert pod.run("/recurse.wasm", name="recurse").code == 139
    assert pod.run("/hello.wasm", name="afterwards").code == 0


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("/unknown_imports.wasm", "env.launch_rockets, wasi_snapshot_preview1.fd_teleport"),
        ("/truncated.wasm", "not a valid WebAssembly module"),
        ("/component.wasm", "components need the engine wasmtime"),
    ],
)
def test_what_it_cannot_run_is_refused_with_a_reason(pod: ModulePod, file: str, reason: str) -> None:
    container = pod.create(file)
    with pytest.raises(grpc.RpcError) as raised:
        pod.cri.start(container)
    assert file in str(raised.value)
    assert reason in str(raised.value)


def test_an_engine_that_is_not_installed_is_named_at_the_start(parts: None, tmp_path: Path) -> None:
    python = copy_interpreter(tmp_path / "python")
    with Engine(WASM) as engine, pytest.raises(RuntimeError) as raised:
        engine.start_sandboxer(python=python)
    assert "engine wasmtime" in str(raised.value)
    assert "Traceback" not in str(raised.value)
