"""Programs get exactly what they need, and their callers exactly what they left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import DeadlineExceeded, NotFound, PermissionDenied
from common.process.exits import ExitWatcher
from common.process.spawn import CAPTURE, CAPTURE_LIMIT_BYTES, Child, Completed, run, spawn


@pytest.fixture
async def watcher() -> AsyncIterator[ExitWatcher]:
    watcher = ExitWatcher()
    yield watcher
    await asyncio.sleep(0.15)
    watcher.close()


async def shell(watcher: ExitWatcher, script: str, **options: object) -> Completed:
    settings = {"timeout_s": 10.0, "stdout": CAPTURE, "stderr": CAPTURE, **options}
    return await run(["/bin/sh", "-c", script], watcher=watcher, **settings)  # type: ignore[arg-type]


async def test_output_input_and_code_come_back(watcher: ExitWatcher) -> None:
    result = await shell(watcher, "cat; echo oops >&2; exit 3", input=b"hello" * 100_000)
    assert (result.stdout, result.stderr, result.status.code) == (b"hello" * 100_000, b"oops\n", 3)


async def test_what_is_not_captured_is_discarded(watcher: ExitWatcher) -> None:
    result = await run(
        ["sh", "-c", "echo a; readlink /proc/self/fd/0 >&2"], watcher=watcher, timeout_s=20, stderr=CAPTURE
    )
    assert (result.stdout, result.stderr) == (b"", b"/dev/null\n")


async def test_a_child_has_only_the_descriptors_it_was_given(watcher: ExitWatcher) -> None:
    extra, leak = os.open("/dev/zero", os.O_RDONLY), os.open("/dev/full", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        script = f"ls /proc/$$/fd; readlink /proc/$$/fd/{extra}"
        result = await shell(watcher, script, pass_fds=[extra])
    finally:
        os.close(extra)
        os.close(leak)
    *numbers, target = result.stdout.decode().split()
    assert set(numbers) == {"0", "1", "2", str(extra)}
    assert target == "/dev/zero"


async def test_a_child_starts_clean(watcher: ExitWatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    result = await shell(watcher, "env; pwd; cat /proc/$$/stat; grep Sig[IB] /proc/self/status")
    text = result.stdout.decode()
    assert "SECRET" not in text
    assert "LANG=C.UTF-8" in text
    assert "\n/\n" in text
    stat = next(line for line in text.splitlines() if "(sh)" in line).split()
    assert stat[0] == stat[4] == stat[5], "it leads a process group and a session"
    ignored = int(text.split("SigIgn:")[1].split()[0], 16)
    blocked = int(text.split("SigBlk:")[1].split()[0], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1)
    assert not blocked


async def test_environment_and_directory_can_be_chosen(watcher: ExitWatcher, tmp_path: Path) -> None:
    result = await shell(watcher, "echo $A; pwd", env={"A": "b"}, cwd=str(tmp_path))
    assert result.stdout.decode().split() == ["b", str(tmp_path)]


async def test_a_missing_program_or_directory_is_named(watcher: ExitWatcher, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nonesuch"):
        await run(["nonesuch"], watcher=watcher, timeout_s=20, stdout=CAPTURE, input=b"x")
    with pytest.raises(NotFound, match="directory /nonesuch"):
        await run(["true"], watcher=watcher, timeout_s=20, cwd="/nonesuch")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(PermissionDenied, match="program"):
        spawn([str(program)], watcher=watcher)


async def test_a_program_that_hangs_is_killed_and_named(watcher: ExitWatcher) -> None:
    children: list[Child] = []
    with pytest.raises(DeadlineExceeded, match=r"sleep 30 did not end within 0\.05 s"):
        await run(["sleep", "30"], watcher=watcher, timeout_s=0.05, stdout=CAPTURE, started=children.append)
    assert children[0].status is not None
    assert children[0].status.code == 137


async def test_cancelling_kills_the_program(watcher: ExitWatcher) -> None:
    children: list[Child] = []
    task = asyncio.ensure_future(run(["sleep", "30"], watcher=watcher, timeout_s=60, started=children.append))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await asyncio.wait_for(children[0].wait(), 20)).code == 137


async def test_a_program_may_be_let_run_to_its_end(watcher: ExitWatcher, tmp_path: Path) -> None:
    argv = ["sh", "-c", f"sleep 0.2; touch {tmp_path}/done"]
    task = asyncio.ensure_future(run(argv, watcher=watcher, timeout_s=60, to_its_end=True))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(("timeout_s", "cancellations"), [(0.1, 1), (60, 2)])
async def test_a_program_that_does_not_end_is_not_waited_for(
    watcher: ExitWatcher, timeout_s: float, cancellations: int
) -> None:
    children: list[Child] = []
    argv = ["sleep", "30"]
    task = asyncio.ensure_future(
        run(argv, watcher=watcher, timeout_s=timeout_s, to_its_end=True, started=children.append)
    )
    for _ in range(cancellations):
        await asyncio.sleep(0.02)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert (await asyncio.wait_for(children[0].wait(), 20)).code == 137


async def test_one_that_is_let_run_to_its_end_has_a_limit_all_the_same(watcher: ExitWatcher) -> None:
    with pytest.raises(DeadlineExceeded, match="sleep 30 did not end"):
        await run(["sleep", "30"], watcher=watcher, timeout_s=0.05, to_its_end=True)


async def test_output_beyond_the_limit_is_dropped_without_blocking_the_program(watcher: ExitWatcher) -> None:
    result = await shell(watcher, "head -c 5000000 /dev/zero; exit 4")
    assert len(result.stdout) == CAPTURE_LIMIT_BYTES
    assert result.status.code == 4


async def test_a_descendant_that_keeps_the_output_open_is_not_waited_for(watcher: ExitWatcher) -> None:
    started_s = time.monotonic()
    result = await shell(watcher, "sleep 2 & echo $!; exit 0")
    assert time.monotonic() - started_s < 1.5
    os.kill(int(result.stdout), signal.SIGKILL)


async def test_several_callers_can_wait_for_one_child(watcher: ExitWatcher) -> None:
    child = spawn(["sh", "-c", "exit 6"], watcher=watcher)
    statuses = await asyncio.gather(child.wait(), child.wait())
    assert {status.code for status in statuses} == {6}
    assert (await child.wait()).code == 6
    with pytest.raises(NotFound):
        child.signal(signal.SIGTERM)
    await child.kill()


async def test_starting_a_program_is_cheap(watcher: ExitWatcher) -> None:
    await run(["/bin/true"], watcher=watcher, timeout_s=20)
    cpu_s = time.process_time()
    for _ in range(100):
        await spawn(["/bin/true"], watcher=watcher).wait()
    assert (time.process_time() - cpu_s) / 100 < 0.001
