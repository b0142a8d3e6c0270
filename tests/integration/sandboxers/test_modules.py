"""Modules when something around them breaks: the fork server, the cache, what is compiled, who wants to know."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from common.linux.pidfd import start_time
from common.process.exits import ExitWatcher
from sandboxers.wasm.config import ModulesConfig
from sandboxers.wasm.launch import Missing, What
from tests.contract.task_backend import Bench
from tests.contract.wasm import Modules, make_rootfs, running_modules
from tests.engine.images import leb128
from tests.modules import module

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
    stdio, output, _ = bench._streams(False)
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


async def test_a_process_that_was_kept_ahead_may_be_killed(bench: Bench, modules: Modules) -> None:
    await (await bench.run("first", "true"))[0].code()
    for pid in children_named(b"fork_server_main"):
        if pid != modules.server.pid:
            os.kill(pid, signal.SIGKILL)
    process, _ = await bench.run("second", "sh", "-c", "exit 3")
    assert await process.code() == 3


async def test_it_ends_when_the_daemon_closes_its_socket_and_what_it_kept_ahead_too(
    modules: Modules,
) -> None:
    assert modules.server._socket is not None
    modules.server._socket.close()
    modules.server._socket = None
    async with asyncio.timeout(5):
        while children_named(b"fork_server_main"):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def test_who_gives_up_a_creation_leaves_no_process(bench: Bench) -> None:
    prepared = bench.prepare("c", ["sh"])
    creation = asyncio.create_task(create_prepared(bench, "c", prepared))
    await asyncio.sleep(0.02)
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    await bench.backend.delete("c", prepared)
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


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"compile_memory_mib": 8}, "memory|address space|ended with code"),
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
    async with running_modules(exits, tmp_path, config) as tight:
        (tmp_path / "others").mkdir()
        bench = Bench(tight.backend, exits, tmp_path / "others", rootfs)
        with pytest.raises(ResourceExhausted, match=reason):
            await create_prepared(bench, "c", bench.prepare("c", ["/other"]))
        await bench.close()
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
    sections = (
        (1, b"\1\x60\0\0"),
        (3, count + bytes(SLOW_FUNCTIONS)),
        (7, b"\1\6_start\0\0"),
        (10, count + b"\2\0\x0b" * SLOW_FUNCTIONS),
    )
    return b"\0asm\1\0\0\0" + b"".join(
        bytes([number]) + leb128(len(content)) + content for number, content in sections
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
        await modules.compiler.compile(missing, file.fileno())
    assert native(modules) == []


async def test_who_looked_before_it_was_made_does_not_have_it_made_again(
    modules: Modules, rootfs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digest = checksum_of_bytes((rootfs / "bin/sh").read_bytes())
    missing = Missing(What.MODULE, f"{digest}-core", digest, "core")
    with open(rootfs / "bin/sh", "rb") as file:
        for _ in range(3):
            assert await modules.compiler.compile(missing, file.fileno()) == missing.key
        unusable = modules.cache.target(missing.key)
        assert capfd.readouterr().err.count('"wasm.compiled"') == 1
        await modules.compiler.compile(missing._replace(unusable=unusable), file.fileno())
        assert capfd.readouterr().err.count('"wasm.compiled"') == 1


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
    stdio, output, source = bench._streams(False)
    process = bench._watched(await bench.backend.create("c", prepared, stdio), stdio, output, source)
    await bench.backend.start("c", prepared)
    assert await process.code() == 6
