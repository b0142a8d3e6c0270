"""What is compiled: once each, in a process without privileges, within limits, and kept as what it was."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from common.process.exits import ExitWatcher
from sandboxers.wasm import launch
from sandboxers.wasm.config import ModulesConfig
from sandboxers.wasm.launch import Missing, What
from tests.children import children_named
from tests.contract.task_backend import Bench
from tests.contract.wasm import Modules, running_modules
from tests.engine.images import leb128
from tests.integration.sandboxers.wasm.conftest import create_prepared
from tests.modules import SOURCES, module

SLOW_FUNCTIONS = 150_000

MANY = 60

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.usefixtures("subreaper"),
]


def checksum_of_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def native(modules: Modules) -> list[Path]:
    """The compiled modules, without the filters."""
    directory = Path(modules.cache.directory)
    return [
        directory / os.readlink(link)
        for link in directory.iterdir()
        if link.is_symlink() and "core" in link.name
    ]


async def test_who_wants_the_same_at_once_gets_it_compiled_once(
    bench: Bench, modules: Modules, capfd: pytest.CaptureFixture[str]
) -> None:
    created = await asyncio.gather(*(bench.create(f"c{n}", "sh", "-c", "exit 0") for n in range(8)))
    assert len({process.pid for process, _ in created}) == 8
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [event["what"] for event in events if event["event"] == "wasm.compiled"] == ["filter", "module"]
    assert len(native(modules)) == 1


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone", "another engine's"])
async def test_code_that_is_not_what_was_compiled_is_made_again(
    bench: Bench, modules: Modules, damage: str
) -> None:
    await (await bench.run("first", "true"))[0].code()
    (code,) = native(modules)
    good = code.read_bytes()
    if damage == "truncated":
        os.truncate(code, len(good) // 2)
    elif damage == "changed":
        code.write_bytes(good[:-5000] + bytes([good[-5000] ^ 1]) + good[-4999:])
    elif damage == "gone":
        code.unlink()
    else:
        # Whole, as its checksum says, but nothing that the engine takes.
        (link,) = [link for link in code.parent.iterdir() if "core" in link.name]
        fd = modules.cache.new_file()
        os.write(fd, b"\x7fELF nonsense")
        modules.cache.add(link.name, fd, checksum_of_bytes(b"\x7fELF nonsense"))
        os.close(fd)
    process, _ = await bench.run("second", "sh", "-c", "exit 9")
    assert await process.code() == 9
    (code,) = native(modules)
    assert code.read_bytes() == good


async def test_what_cannot_be_compiled_says_why_and_leaves_nothing(
    bench: Bench, modules: Modules, rootfs: Path
) -> None:
    (rootfs / "broken").write_bytes(module("sh").read_bytes()[:200])
    with pytest.raises(InvalidArgument, match=r"/broken: not a valid WebAssembly module"):
        await create_prepared(bench, "c", bench.prepare("c", ["/broken"]))
    assert native(modules) == []
    assert not [name for name in os.listdir(modules.cache.directory) if name.startswith(".")]


def core_module(*sections: tuple[int, bytes]) -> bytes:
    """A module of sections, each with its number."""
    return b"\0asm\1\0\0\0" + b"".join(
        bytes([number]) + leb128(len(content)) + content for number, content in sections
    )


def importing(count: int, name_bytes: int) -> bytes:
    """A module that imports functions with names of a length, all of a kind of their own."""
    names = [b"%d" % number for number in range(count)]
    imports = b"".join(
        b"\1x" + leb128(name_bytes) + name.ljust(name_bytes, b"\x01") + b"\0\0" for name in names
    )
    return core_module((1, b"\1\x60\0\0"), (2, leb128(count) + imports))


@pytest.mark.parametrize(("count", "name_bytes"), [(1_200, 40), (50_000, 40), (200, 20_000)])
async def test_unknown_imports_are_named_however_many_and_long_they_are(
    bench: Bench, rootfs: Path, count: int, name_bytes: int
) -> None:
    (rootfs / "wants").write_bytes(importing(count, name_bytes))
    with pytest.raises(
        InvalidArgument, match=rf"/wants: it imports .*: x\.0\?.* and {count - 20} more$"
    ) as raised:
        await create_prepared(bench, "c", bench.prepare("c", ["/wants"]))
    assert len(str(raised.value)) < launch.MAX_ERROR_CHARACTERS


def component(import_name: str, function: str) -> bytes:
    """A component that is a command, and imports an interface with one function."""
    from wasmtime import wat2wasm

    text = (SOURCES / "failing_component.wat").read_text().rstrip().removesuffix(")")
    return bytes(wat2wasm(f'{text} (import "{import_name}" (instance (export {function}))))'))


@pytest.mark.parametrize(
    ("interface", "function"),
    [
        ("wasi:cli/nonesuch@0.2.0", '"x" (func)'),
        ("wasi:cli/environment@0.9.0", '"get-arguments" (func (result (list string)))'),
        ("wasi:cli/environment@0.2.0", '"get-nonesuch" (func)'),
        ("wasi:cli/environment@0.2.0", '"get-arguments" (func (result string))'),
        ("acme:rockets/launch@1.0.0", '"x" (func)'),
    ],
)
async def test_a_component_that_imports_what_is_not_offered_is_refused(
    bench: Bench, rootfs: Path, interface: str, function: str
) -> None:
    (rootfs / "wants").write_bytes(component(interface, function))
    with pytest.raises(InvalidArgument, match=rf"/wants: it cannot be linked: .*{interface}"):
        await create_prepared(bench, "c", bench.prepare("c", ["/wants"]))


async def test_a_component_that_imports_what_is_offered_runs(bench: Bench, rootfs: Path) -> None:
    # Of the versions that agree by their numbers, any.
    function = '"get-arguments" (func (result (list string)))'
    (rootfs / "wants").write_bytes(component("wasi:cli/environment@0.2.1", function))
    process, _ = await bench.run("c", "/wants")
    assert await process.code() == 1


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"compile_memory_mib": 8}, "memory|address space|ended with code"),
        ({"cache_size_mib": 1}, r"takes more than 0 MiB, half of modules\.cache_size_mib"),
        ({"compile_timeout_s": 0.001}, r"more than 0\.001 s"),
    ],
)
async def test_compiling_has_limits(
    exits: ExitWatcher, tmp_path: Path, rootfs: Path, limits: dict[str, Any], reason: str
) -> None:
    config = ModulesConfig(cache_dir=str(tmp_path / "cache"))
    (tmp_path / "bundles").mkdir()
    (rootfs / "other").write_bytes(module("cat").read_bytes())
    async with running_modules(exits, tmp_path, config) as ample:
        bench = Bench(ample.backend, exits, tmp_path / "bundles", rootfs)
        # The filter needs less than a module, and so would be refused first.
        await (await bench.run("filter", "true"))[0].code()
        await bench.close()
    config = ModulesConfig(cache_dir=config.cache_dir, **limits)
    async with AsyncExitStack() as stack:
        tight = await stack.enter_async_context(running_modules(exits, tmp_path, config))
        (tmp_path / "others").mkdir()
        bench = Bench(tight.backend, exits, tmp_path / "others", rootfs)
        stack.push_async_callback(bench.close)
        with pytest.raises(ResourceExhausted, match=reason):
            await create_prepared(bench, "c", bench.prepare("c", ["/other"]))
        assert len(native(tight)) == 1


def compilers() -> list[int]:
    """The processes that are ahead for compiling, or compile."""
    return [
        pid
        for pid in children_named(b"fork_server_main")
        if "\nUid:\t65534\t65534\t65534\t65534\n" in Path(f"/proc/{pid}/status").read_text()
    ]


async def compiler_is_ahead() -> int:
    async with asyncio.timeout(20):
        # One that has done its work may not be gone yet.
        while len(compilers()) != 1:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    return compilers()[0]


async def compiles(pid: int) -> None:
    """Return when a process has had an order for a while: one that only waits takes no time of the processor."""
    async with asyncio.timeout(20):
        while _cpu_ticks(pid) < 10:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


def _cpu_ticks(pid: int) -> int:
    """How many hundredths of a second it has run (proc_pid_stat(5), utime)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def slow_module() -> bytes:
    """A module that takes seconds to be compiled: one type, and very many functions that do nothing."""
    count = leb128(SLOW_FUNCTIONS)
    return core_module(
        (1, b"\1\x60\0\0"),
        (3, count + bytes(SLOW_FUNCTIONS)),
        (7, b"\1\6_start\0\0"),
        (10, count + b"\2\0\x0b" * SLOW_FUNCTIONS),
    )


async def test_who_compiles_has_no_privileges_and_dies_with_the_daemon(modules: Modules) -> None:
    pid = await compiler_is_ahead()
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert {fields[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Groups"].strip() == ""
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    assert os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    assert os.listdir(f"/proc/{pid}/root") == ["tmp"]
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
    # Beside the standard streams it has what it waits at.
    assert len(os.listdir(f"/proc/{pid}/fd")) == 4


async def test_who_compiles_may_be_killed_before_and_meanwhile(
    bench: Bench, modules: Modules, rootfs: Path
) -> None:
    await (await bench.run("filter", "true"))[0].code()
    os.kill(await compiler_is_ahead(), signal.SIGKILL)
    shutil.copy(module("cat"), rootfs / "other")
    # Who finds it dead gets another one.
    await bench.create("before", "/other")
    (rootfs / "slow").write_bytes(slow_module())
    pid = await compiler_is_ahead()
    creation = asyncio.create_task(create_prepared(bench, "c", bench.prepare("c", ["/slow"])))
    await compiles(pid)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ResourceExhausted, match=r"/slow: compiling the module ended with code 137"):
        await creation
    assert len(native(modules)) == 2
    assert not [name for name in os.listdir(modules.cache.directory) if name.startswith(".")]


async def test_what_is_being_compiled_outlives_the_fork_server(
    bench: Bench, modules: Modules, rootfs: Path
) -> None:
    await (await bench.run("filter", "true"))[0].code()
    (rootfs / "slow").write_bytes(slow_module())
    pid = await compiler_is_ahead()
    creation = asyncio.create_task(create_prepared(bench, "c", bench.prepare("c", ["/slow"])))
    await compiles(pid)
    os.kill(modules.server.pid, signal.SIGKILL)
    # Whoever starts what is there already waits for nobody.
    assert await (await bench.run("meanwhile", "sh", "-c", "exit 3"))[0].code() == 3
    assert not creation.done()
    assert await creation > 0
    assert len(native(modules)) == 2


async def test_an_order_in_the_hands_of_a_server_that_dies_is_repeated(
    bench: Bench, modules: Modules, rootfs: Path
) -> None:
    await (await bench.run("filter", "true"))[0].code()
    for number in range(5):
        (rootfs / f"module{number}").write_bytes(module("sh").read_bytes() + b"\0\2\1" + bytes([number]))
        os.kill(await compiler_is_ahead(), signal.SIGSTOP)
        creation = asyncio.create_task(bench.run(f"c{number}", f"/module{number}", "-c", "exit 4"))
        await asyncio.sleep(0.05)
        # With what it has forked ahead, and has been told already.
        os.kill(modules.server.pid, signal.SIGKILL)
        for pid in compilers():
            os.kill(pid, signal.SIGKILL)
        process, _ = await creation
        assert await process.code() == 4


async def test_a_module_that_is_changed_meanwhile_is_not_kept_as_what_it_was(
    modules: Modules, rootfs: Path
) -> None:
    missing = Missing(What.MODULE, "key", checksum_of_bytes(b"another one"), "core")
    with open(rootfs / "bin/sh", "rb") as file, pytest.raises(FailedPrecondition, match="changed"):
        await modules.compiler.compile(missing, file.fileno(), "pod")
    assert native(modules) == []


async def test_who_looked_before_it_was_made_does_not_have_it_made_again(
    modules: Modules, rootfs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digest = checksum_of_bytes((rootfs / "bin/sh").read_bytes())
    missing = Missing(What.MODULE, f"{digest}-core", digest, "core")
    with open(rootfs / "bin/sh", "rb") as file:
        for _ in range(3):
            assert await modules.compiler.compile(missing, file.fileno(), "pod") == missing.key
        unusable = modules.cache.target(missing.key)
        assert capfd.readouterr().err.count('"wasm.compiled"') == 1
        await modules.compiler.compile(missing._replace(unusable=unusable), file.fileno(), "pod")
        assert capfd.readouterr().err.count('"wasm.compiled"') == 1


async def test_a_pod_with_many_modules_keeps_no_other_waiting(
    modules: Modules, rootfs: Path, tmp_path: Path
) -> None:
    slow = slow_module()
    files = []
    for number in range(2 * (os.cpu_count() or 1)):
        files.append(tmp_path / f"slow{number}")
        files[-1].write_bytes(slow + b"\0\2\1" + bytes([number]))
    files.append(rootfs / "bin/sh")

    async def compiled(path: Path, pod: str) -> None:
        digest = checksum_of_bytes(path.read_bytes())
        with open(path, "rb") as file:
            missing = Missing(What.MODULE, f"{digest}-core", digest, "core")
            await modules.compiler.compile(missing, file.fileno(), pod)

    many = [asyncio.create_task(compiled(path, "one")) for path in files[:-1]]
    await asyncio.sleep(0)
    await compiled(files[-1], "other")
    # Without turns all would have come first but those in the last places, of which there are as many as processors.
    assert sum(task.done() for task in many) <= 1
    for task in many:
        task.cancel()
    await asyncio.gather(*many, return_exceptions=True)


async def test_many_are_compiled_one_after_the_other(bench: Bench, modules: Modules, rootfs: Path) -> None:
    content = module("cat").read_bytes()
    for number in range(MANY):
        (rootfs / f"module{number}").write_bytes(content + b"\0\2\1" + bytes([number]))
    created = await asyncio.gather(*(bench.create(f"c{n}", f"/module{n}") for n in range(MANY)))
    assert len({process.pid for process, _ in created}) == len(native(modules)) == MANY
