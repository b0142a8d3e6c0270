"""The fork server: it dies, cannot fork, or has a successor, and no container notices."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from common.cgroup import Hierarchies, make_cgroup, remove_leaf
from common.errors import SandboxdError, Unavailable
from common.linux.pidfd import start_time
from common.process.exits import ExitWatcher
from sandboxers.wasm.compiler import Compiler
from sandboxers.wasm.config import ModulesConfig
from sandboxers.wasm.launch import Missing
from tests.children import children_named
from tests.contract.task_backend import Bench
from tests.contract.wasm import Modules, forked_processes_end
from tests.integration.sandboxers.wasm.conftest import change_spec, create_prepared
from tests.modules import module

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.usefixtures("subreaper"),
]


async def both_are_ahead() -> None:
    """Return when the fork server has nobody but the two that it keeps ahead, one of each kind."""
    async with asyncio.timeout(20):
        while len(children_named(b"fork_server_main")) != 3:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


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
    await forked_processes_end()
    first = asyncio.create_task(bench.run("first", "sh", "-c", "exit 4"))
    async with asyncio.timeout(20):
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
    process, _ = await asyncio.wait_for(queued, 20)
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
    await both_are_ahead()
    server = modules.server.pid
    cgroup = Hierarchies.read().at(f"/sandboxd-test-{os.getpid()}")
    make_cgroup(cgroup)
    directory = cgroup.directory("pids")
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
        await forked_processes_end()
        remove_leaf(cgroup)


async def test_it_ends_when_the_daemon_closes_its_socket_and_what_it_kept_ahead_too(
    modules: Modules,
) -> None:
    assert modules.server._socket is not None
    modules.server._socket.close()
    modules.server._socket = None
    await forked_processes_end()


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
