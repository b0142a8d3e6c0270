"""Modules when something around them breaks: the fork server, the cache, what is compiled, who wants to know."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from common.cgroup import Cgroup, Hierarchies, make_cgroup, remove_leaf
from common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, SandboxdError, Unavailable
from common.linux.pidfd import start_time
from common.process.exits import ExitWatcher
from sandboxers.wasm import launch
from sandboxers.wasm.compiler import Compiler
from sandboxers.wasm.config import ModulesConfig
from sandboxers.wasm.launch import Missing, What
from tests.contract.task_backend import Bench
from tests.contract.wasm import Modules, make_rootfs, running_modules
from tests.engine.images import leb128
from tests.modules import SOURCES, module

SLOW_FUNCTIONS = 150_000
MANY = 60

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.usefixtures("subreaper"),
]


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


def children_named(text: bytes) -> list[int]:
    """The children of this process whose command line has a text."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids if text in Path(f"/proc/{pid}/cmdline").read_bytes()]


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


# -- the fork server ---------------------------------------------------------------------------------


async def test_containers_outlive_the_fork_server_and_new_ones_have_a_new_one(
    bench: Bench, modules: Modules
) -> None:
    cat, _ = await bench.run("one", "sh", "-c", "echo up; cat")
    await cat.expect(b"up\n")
    waiting, prepared = await bench.create("two", "sh", "-c", "exit 5")
    old = modules.server.pid
    os.kill(old, signal.SIGKILL)
    await asyncio.sleep(0.1)
    with open(cat.source, "wb", buffering=0) as source:
        source.write(b"still here\n")
    await cat.expect(b"still here\n")
    await bench.backend.start("two", prepared)
    assert await waiting.code() == 5
    third, _ = await bench.run("three", "sh", "-c", "exit 6")
    assert await third.code() == 6
    assert (await (await bench.exec("one", "sh", "-c", "exit 7")).code()) == 7
    assert modules.server.pid not in (0, old)


async def test_launches_at_the_moment_of_its_death_succeed(bench: Bench, modules: Modules) -> None:
    await (await bench.run("warm", "true"))[0].code()
    for number in range(5):
        os.kill(modules.server.pid, signal.SIGKILL)
        process, _ = await bench.run(f"c{number}", "sh", "-c", f"exit {number}")
        assert await process.code() == number


async def test_a_server_that_dies_while_it_starts_holds_nobody_up(bench: Bench, modules: Modules) -> None:
    await (await bench.run("warm", "true"))[0].code()
    os.kill(modules.server.pid, signal.SIGKILL)
    await asyncio.sleep(0.3)
    first = asyncio.create_task(bench.run("first", "sh", "-c", "exit 4"))
    async with asyncio.timeout(10):
        while not (starting := children_named(b"fork_server_main")):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
        os.kill(starting[0], signal.SIGKILL)
        # Not with the event loop's help: who comes next shall find it dead before who waits for it does.
        os.waitid(os.P_PID, starting[0], os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
        second, _ = await bench.run("second", "sh", "-c", "exit 4")
        with pytest.raises(Unavailable):
            await first
        assert await second.code() == 4


class HeldBack(Compiler):
    """A compiler that waits before it begins."""

    begins: asyncio.Event

    async def compile(self, missing: Missing, source: int, pod: str) -> str:
        await self.begins.wait()
        return await super().compile(missing, source, pod)


async def test_a_launch_that_dies_with_the_server_waits_for_no_other_launch(
    bench: Bench, modules: Modules, config: ModulesConfig, exits: ExitWatcher, rootfs: Path
) -> None:
    await (await bench.run("warm", "true"))[0].code()
    compiler = modules.backend._compiler = HeldBack(config, modules.cache, exits, modules.server)
    compiler.begins = asyncio.Event()
    shutil.copy(module("cat"), rootfs / "other")
    compiled = asyncio.create_task(bench.create("compiled", "/other"))
    await asyncio.sleep(0.3)
    old = modules.server.pid
    os.kill(old, signal.SIGSTOP)
    queued = asyncio.create_task(bench.run("queued", "sh", "-c", "exit 4"))
    await asyncio.sleep(0.1)
    os.kill(old, signal.SIGKILL)
    process, _ = await asyncio.wait_for(queued, 10)
    assert await process.code() == 4
    assert not compiled.done()
    compiler.begins.set()
    await compiled


async def test_a_process_that_was_kept_ahead_may_be_killed(bench: Bench, modules: Modules) -> None:
    await (await bench.run("first", "true"))[0].code()
    for pid in children_named(b"fork_server_main"):
        if pid != modules.server.pid:
            os.kill(pid, signal.SIGKILL)
    process, _ = await bench.run("second", "sh", "-c", "exit 3")
    assert await process.code() == 3


async def test_it_survives_that_no_process_can_be_forked(
    bench: Bench, modules: Modules, tmp_path: Path
) -> None:
    await (await bench.run("before", "true"))[0].code()
    server = modules.server.pid
    cgroup = Hierarchies.read().at(f"/sandboxd-test-{os.getpid()}")
    own = Hierarchies.read().locate(server)
    make_cgroup(cgroup)
    directory, home = cgroup.directory("pids"), own.directory("pids") or _top_of(cgroup, "pids")
    assert directory is not None
    try:
        Path(directory, "cgroup.procs").write_text(str(server))
        Path(directory, "pids.max").write_text("1")
        # The one that was kept ahead serves it, but there is no next one, and so nobody for the one after.
        await (await bench.run("last", "true"))[0].code()
        with pytest.raises(SandboxdError, match="Resource temporarily unavailable"):
            await create_prepared(bench, "none", bench.prepare("none", ["true"]))
        Path(directory, "pids.max").write_text("max")
        process, _ = await bench.run("after", "sh", "-c", "exit 3")
        assert await process.code() == 3
        assert modules.server.pid == server
    finally:
        modules.server.close()
        await asyncio.sleep(0.3)
        for pid in Path(directory, "cgroup.procs").read_text().split():
            Path(home, "cgroup.procs").write_text(pid)
        remove_leaf(cgroup)


def _top_of(cgroup: Cgroup, controller: str) -> str:
    directory = cgroup.directory(controller)
    assert directory is not None
    return os.path.dirname(directory)


async def test_it_ends_when_the_daemon_closes_its_socket_and_what_it_kept_ahead_too(
    modules: Modules,
) -> None:
    assert modules.server._socket is not None
    modules.server._socket.close()
    modules.server._socket = None
    async with asyncio.timeout(5):
        while children_named(b"fork_server_main"):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def test_who_gives_up_a_creation_leaves_no_process(
    bench: Bench, modules: Modules, config: ModulesConfig, exits: ExitWatcher
) -> None:
    compiler = modules.backend._compiler = HeldBack(config, modules.cache, exits, modules.server)
    compiler.begins = asyncio.Event()
    prepared = bench.prepare("c", ["sh"])
    creation = asyncio.create_task(create_prepared(bench, "c", prepared))
    await asyncio.sleep(0.3)
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    await bench.backend.delete("c", prepared)
    compiler.begins.set()
    process, _ = await bench.run("d", "sh", "-c", "exit 4")
    assert await process.code() == 4


async def test_fifty_at_once_all_run(bench: Bench) -> None:
    processes = await asyncio.gather(
        *(bench.run(f"c{n}", "sh", "-c", f"echo {n}; exit {n}") for n in range(50))
    )
    assert [await process.code() for process, _ in processes] == list(range(50))
    assert [process.output() for process, _ in processes] == [b"%d\n" % n for n in range(50)]


async def test_a_shared_pid_namespace_is_joined(bench: Bench) -> None:
    first, _ = await bench.run("first", "sleep", "60")
    namespace = f"/proc/{first.pid}/ns/pid"
    namespaces = [{"type": kind} for kind in ("mount", "ipc", "uts")] + [{"type": "pid", "path": namespace}]
    prepared = change_spec(bench, "second", ["sleep", "60"], namespaces=namespaces)
    prepared = type(prepared)(
        prepared.directory, prepared.rootfs, prepared.owner, prepared.cgroups_path, False
    )
    pid = await create_prepared(bench, "second", prepared)
    assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(namespace)
    assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink(f"/proc/{first.pid}/ns/mnt")
    await bench.backend.delete("second", prepared)


# -- what a daemon's death leaves ----------------------------------------------------------------------


async def test_an_exec_that_was_not_let_go_is_killed_and_counts_as_failed(bench: Bench) -> None:
    first, prepared = await bench.run("c", "sleep", "60")
    process = await bench.exec("c", "sleep", "60")
    files = Path(prepared.directory)
    assert bench.backend.pid_of_exec("e3", prepared) == process.pid
    # As it is between the moment when it waits and the opening of its gate.
    (files / "exec-e3.open").rename(files / "exec-e3.gate")
    assert bench.backend.pid_of_exec("e3", prepared) == 0
    assert await process.code() == 137
    bench.backend.forget_exec("e3", prepared)
    assert bench.backend.pid_of_exec("e3", prepared) is None
    assert not first.end.done()


async def test_a_start_that_was_cut_short_is_finished(bench: Bench) -> None:
    process, prepared = await bench.create("c", "sh", "-c", "exit 8")
    files = Path(prepared.directory)
    assert not await bench.backend.is_started("c", prepared)
    # As it is between the renaming and the byte.
    (files / "first.gate").rename(files / "first.open")
    assert await bench.backend.is_started("c", prepared)
    assert await process.code() == 8
    assert await bench.backend.is_started("c", prepared)


async def test_a_pid_that_somebody_else_has_now_is_left_alone(bench: Bench) -> None:
    process, prepared = await bench.run("c", "true")
    await process.code()
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    record = Path(prepared.directory) / "first.pid.json"
    fields = json.loads(record.read_text())
    fields["record"]["pid"] = bystander.pid
    assert fields["record"]["start_time"] != start_time(bystander.pid)
    record.write_text(json.dumps(fields))
    await bench.backend.delete("c", prepared)
    assert bystander.returncode is None
    bystander.kill()
    with pytest.raises(Exception, match="ended"):
        await bench.exec("c", "true")
    await bystander.wait()


# -- what is compiled ----------------------------------------------------------------------------------


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
    async with asyncio.timeout(5):
        # One that has done its work may not be gone yet.
        while len(compilers()) != 1:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    return compilers()[0]


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
    await asyncio.sleep(0.3)
    assert pid in compilers()
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
    await asyncio.sleep(0.3)
    assert pid in compilers()
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


async def test_a_profile_of_the_specification_is_the_filter(bench: Bench, modules: Modules) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["write", "writev"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    prepared = change_spec(bench, "c", ["sh", "-c", "echo x"], seccomp=profile)
    with pytest.raises(Exception, match="died"):
        # It cannot even say that it is ready.
        await create_prepared(bench, "c", prepared)
    broken = change_spec(bench, "d", ["true"], seccomp={"defaultAction": "SCMP_ACT_NOTIFY"})
    with pytest.raises(InvalidArgument, match="SCMP_ACT_NOTIFY"):
        await create_prepared(bench, "d", broken)


async def test_a_module_of_a_volume_runs_too(bench: Bench, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    shutil.copy(module("sh"), volume / "sh")
    prepared = bench.prepare("c", ["/mnt/deep/sh", "-c", "exit 6"])
    path = Path(prepared.directory) / "config.json"
    spec = json.loads(path.read_text())
    spec["mounts"].append({"destination": "/mnt/deep", "source": str(volume), "options": ["rbind", "ro"]})
    path.write_text(json.dumps(spec))
    stdio, output, source = await bench._streams(False)
    process = bench._watched(await bench.backend.create("c", prepared, stdio), stdio, output, source)
    await bench.backend.start("c", prepared)
    assert await process.code() == 6


async def test_a_cgroup_that_would_not_be_removed_is_not_made(bench: Bench) -> None:
    prepared = change_spec(bench, "c", ["true"], cgroupsPath="/sandboxd-anything")
    prepared = dataclasses.replace(prepared, cgroups_path="/sandboxd-anything")
    with pytest.raises(InvalidArgument, match=r"/sandboxd-anything must be named after .*/<parent>/c"):
        await create_prepared(bench, "c", prepared)
    assert Hierarchies.read().at("/sandboxd-anything").directories() == []


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {"module.wasm.image/variant": "compat"},
        {"module.wasm.image/variant": "compat-smart"},
        {"run.oci.handler": "wasm"},
    ],
)
async def test_a_module_is_one_whatever_annotations_say(bench: Bench, annotations: dict[str, str]) -> None:
    prepared = bench.prepare("c", ["sh", "-c", "exit 6"])
    path = Path(prepared.directory) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": annotations}))
    pid = await create_prepared(bench, "c", prepared)
    assert Path(f"/proc/{pid}/comm").read_text() == "sh\n"


@pytest.mark.parametrize("annotation", ["module.wasm.image/variant", "run.oci.handler"])
async def test_a_program_is_none_whatever_annotations_say(
    bench: Bench, rootfs: Path, annotation: str
) -> None:
    (rootfs / "bin/native").write_bytes(b"\x7fELF" + bytes(60))
    prepared = bench.prepare("c", ["native"])
    path = Path(prepared.directory) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": {annotation: "wasm"}}))
    with pytest.raises(InvalidArgument, match="native program"):
        await create_prepared(bench, "c", prepared)


async def test_a_working_directory_that_is_missing_is_made(bench: Bench, rootfs: Path) -> None:
    prepared = bench.prepare("c", ["/bin/sleep", "60"])
    path = Path(prepared.directory) / "config.json"
    spec = json.loads(path.read_text())
    spec["process"]["cwd"] = "/srv/app"
    spec["root"]["readonly"] = True
    path.write_text(json.dumps(spec))
    pid = await create_prepared(bench, "c", prepared)
    assert os.readlink(f"/proc/{pid}/cwd") == "/srv/app"
    assert (rootfs / "srv/app").is_dir()


# -- what a module must not reach ----------------------------------------------------------------------


async def test_no_process_has_a_descriptor_of_a_directory_of_the_host(bench: Bench) -> None:
    first, _ = await bench.run("c", "sh", "-c", "echo up; cat")
    await first.expect(b"up\n")
    second = await bench.exec("c", "sh", "-c", "echo up; cat")
    await second.expect(b"up\n")
    for pid in (first.pid, second.pid):
        root = os.stat(f"/proc/{pid}/root/")
        opened = [os.stat(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        directories = [found for found in opened if stat.S_ISDIR(found.st_mode)]
        assert directories
        assert all(os.path.samestat(found, root) for found in directories)


class OverwrittenMeanwhile(Compiler):
    """A compiler before whose work somebody changes the module."""

    target: Path
    content: bytes

    async def compile(self, missing: Missing, source: int, pod: str) -> str:
        if missing.what == What.MODULE:
            self.target.write_bytes(self.content)
        return await super().compile(missing, source, pod)


async def test_who_overwrites_a_module_while_it_is_compiled_changes_nobody_elses(
    bench: Bench, modules: Modules, config: ModulesConfig, exits: ExitWatcher, rootfs: Path
) -> None:
    compiler = OverwrittenMeanwhile(config, modules.cache, exits, modules.server)
    compiler.target, compiler.content = rootfs / "mine", module("hello").read_bytes()
    compiler.target.write_bytes(module("sh").read_bytes())
    modules.backend._compiler = compiler
    own, _ = await bench.run("attacker", "/mine", "-c", "exit 3")
    assert await own.code() == 3
    other, _ = await bench.run("victim", "sh", "-c", "exit 4")
    assert await other.code() == 4


async def test_an_exec_is_killed_as_readily_as_its_container(bench: Bench) -> None:
    _, prepared = await bench.run("c", "sleep", "60")
    path = Path(prepared.directory) / "config.json"
    spec = json.loads(path.read_text())
    spec["process"]["oomScoreAdj"] = 500
    path.write_text(json.dumps(spec))
    process = await bench.exec("c", "sleep", "60")
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "500\n"
