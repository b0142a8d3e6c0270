"""Standard streams: FIFOs handed to the process, files, terminals, and readers and writers that misbehave."""

from __future__ import annotations

import asyncio
import os

import pytest

from common.errors import Code
from tests.durations import async_expect_within
from tests.integration.daemon.client import Pod, refused

GIGABYTE = 1 << 30


async def test_a_reader_that_vanishes_kills_nobody(pod: Pod) -> None:
    container = pod.container("sh", "-c", "while :; do echo line || exit 9; sleep 0.02; done")
    await container.create()
    await container.start()
    await container.stdout.until(b"line")
    container.stdout.close()
    container.stderr.close()
    await asyncio.sleep(0.3)
    assert await container.state() == "running"
    container.stdout.ended = False
    container.stdout.data.clear()
    container.stdout.open(pod.daemon.lab.path(container.io["stdout"]))
    await container.stdout.until(b"line")


async def test_the_end_of_the_output_reaches_the_engine_when_the_process_has_ended(pod: Pod) -> None:
    container = await pod.running("echo", "bye")
    assert await container.stdout.end() == b"bye\n"
    assert await container.stderr.end() == b""
    await container.wait()


async def test_one_that_writes_a_gigabyte_while_nobody_reads_waits_and_costs_nothing(pod: Pod) -> None:
    container = pod.container("head", "-c", str(GIGABYTE), "/dev/zero", streams=("stdout",))
    container.stdout.pause()
    await container.create()
    before_kib = pod.daemon.memory_kib()
    await container.start()
    await asyncio.sleep(0.5)
    assert await container.state() == "running"
    assert pod.daemon.memory_kib() - before_kib < 1024

    async def expect_quick() -> None:
        assert await pod.run("echo", "quick") == (0, "quick\n")

    await async_expect_within(1.5, expect_quick)  # output is waited for for 2 s at the least
    await container.kill(9)
    assert await container.wait() == 137


async def test_large_output_arrives_whole(pod: Pod) -> None:
    container = await pod.running("head", "-c", str(20 << 20), "/dev/zero", streams=("stdout",))
    assert await container.wait() == 0
    assert len(await container.stdout.end()) == 20 << 20


async def test_large_input_is_read_to_its_end_after_close_io(pod: Pod) -> None:
    container = await pod.running("sh", "-c", "sleep 0.2; wc -c", streams=("stdin", "stdout"))
    container.write(b"x" * 60_000)
    await pod.task("CloseIO", id=container.id, stdin=True)
    container.close_stdin()
    assert await container.wait() == 0
    assert await container.stdout.end() == b"60000\n"


@pytest.mark.parametrize("link", ["/dev/stdout", "/proc/self/fd/1"])
async def test_a_user_who_is_not_root_can_reopen_its_standard_output(pod: Pod, link: str) -> None:
    command = ("sh", "-c", f"ln -s {link} /tmp/access.log; id -u; echo again >/tmp/access.log")
    assert await pod.run(*command, uid=65534, gid=65534) == (0, "65534\nagain\n")


async def test_an_exec_of_a_user_who_is_not_root_can_reopen_its_standard_output(pod: Pod) -> None:
    container = await pod.running()
    assert await container.run_exec("sh", "-c", "echo x >/dev/stdout", uid=1000, gid=1000) == (0, "x\n")


async def test_without_streams_the_process_has_dev_null(pod: Pod) -> None:
    container = pod.container("sh", "-c", "cat; echo lost; echo lost >&2; exit 4", streams=())
    await container.create()
    await container.start()
    assert await container.wait() == 4


async def test_a_container_and_an_exec_have_no_other_descriptors(pod: Pod) -> None:
    list_descriptors = ("sh", "-c", "for fd in /proc/$$/fd/*; do [ -e $fd ] && echo ${fd##*/}; done; exit 0")
    assert await pod.run(*list_descriptors) == (0, "0\n1\n2\n")
    container = await pod.running()
    assert await container.run_exec(*list_descriptors) == (0, "0\n1\n2\n")


# -- what is not a FIFO ----------------------------------------------------------------------------


async def test_file_streams_are_appended_to(pod: Pod) -> None:
    container = pod.container("sh", "-c", "echo out; echo err >&2", streams=())
    log = f"{container.directory}/io/log"
    pod.daemon.lab.path(log).write_text("before\n")
    await container.create(stdout=f"file://{log}", stderr=f"file://{log}")
    await container.start()
    assert await container.wait() == 0
    assert pod.daemon.lab.path(log).read_text() == "before\nout\nerr\n"


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
async def test_logging_programs_are_refused_by_name(pod: Pod, stream: str) -> None:
    container = pod.container("true", streams=())
    with refused(Code.INVALID_ARGUMENT, "binary://", "FIFO"):
        await container.create(**{stream: "binary:///bin/sh?arg=x"})


@pytest.mark.parametrize(
    ("stream", "terminal"),
    [("stdin", False), ("stdout", False), ("stderr", False), ("stdin", True), ("stdout", True)],
)
async def test_what_is_no_fifo_is_refused(pod: Pod, stream: str, terminal: bool) -> None:
    container = pod.container("true", streams=("terminal",) if terminal else ())
    io = pod.daemon.lab.path(f"{container.directory}/io")
    (io / "file").write_text("precious")
    os.mkfifo(io / "fifo")
    (io / "link").symlink_to("fifo")
    inside = f"{container.directory}/io"
    for name, code, said in (
        ("file", Code.INVALID_ARGUMENT, "not a FIFO"),
        ("link", Code.INVALID_ARGUMENT, "not a FIFO"),
        (".", Code.INVALID_ARGUMENT, "not a FIFO"),
        ("missing", Code.NOT_FOUND, "does not exist"),
        ("../io/fifo", Code.INVALID_ARGUMENT, "'..'"),
    ):
        with refused(code, said, name.rstrip(".")):
            await container.create(**{stream: f"{inside}/{name}"})
    with refused(Code.INVALID_ARGUMENT, "absolute"):
        await container.create(**{stream: "io/fifo"})
    assert (io / "file").read_text() == "precious"


async def test_a_bad_stream_of_an_exec_is_refused_and_the_exec_can_be_deleted(pod: Pod) -> None:
    container = await pod.running()
    process = await container.exec("true")
    os.unlink(pod.daemon.lab.path(f"{container.directory}/io/exec1-stdout"))
    with refused(Code.NOT_FOUND, "exec1-stdout"):
        await pod.task("Start", **process.ids)
    assert await process.state() == "created"
    await process.delete()
    assert await container.state() == "running"


# -- terminals -------------------------------------------------------------------------------------


async def test_a_terminal_session_with_resize(pod: Pod) -> None:
    container = await pod.running("sh", streams=("terminal", "stdin", "stdout"), env=["PS1=> "])
    await container.stdout.until(b"> ")
    await pod.task("ResizePty", id=container.id, width=132, height=50)
    container.write(b"stty size; tty\n")
    await container.stdout.until(b"50 132")
    await container.stdout.until(b"/dev/")
    container.write(b"sh -c 'echo st''arted; sleep 1000'\n")
    await container.stdout.until(b"started\r\n")
    container.write(b"\x03")
    await container.stdout.until(b"^C\r\n> ")
    container.write(b"exit 5\n")
    assert await container.wait() == 5
    await container.stdout.end()
    assert (await pod.task("State", id=container.id)).terminal


async def test_a_terminal_of_an_exec_can_be_resized_before_its_start(pod: Pod) -> None:
    container = await pod.running()
    script = "until stty size | grep '30 100'; do sleep 0.01; done 2>/dev/null"
    process = await container.exec("sh", "-c", script, streams=("terminal", "stdout"))
    await pod.task("ResizePty", **process.ids, width=100, height=30)
    await process.start()
    assert await process.wait() == 0
    assert b"30 100\r\n" in await process.stdout.end()


async def test_a_terminal_belongs_to_the_user_of_its_container(pod: Pod) -> None:
    container = await pod.running(
        "sh", "-c", "id -u; echo again >/dev/stdout", streams=("terminal", "stdout"), uid=1000, gid=1000
    )
    await container.wait()
    assert await container.stdout.end() == b"1000\r\nagain\r\n"


async def test_the_last_output_of_a_terminal_is_not_lost(pod: Pod) -> None:
    container = await pod.running("sh", "-c", "seq 1 20000", streams=("terminal", "stdout"))
    assert await container.wait() == 0
    assert (await container.stdout.end()).split()[-1] == b"20000"


async def test_a_terminal_that_nobody_reads_stops_its_process_alone(pod: Pod) -> None:
    container = pod.container("head", "-c", str(GIGABYTE), "/dev/zero", streams=("terminal", "stdout"))
    container.stdout.pause()
    await container.create()
    await container.start()
    await asyncio.sleep(0.3)
    assert await container.state() == "running"
    assert await pod.run("echo", "quick") == (0, "quick\n")
    await container.kill(9)
    assert await container.wait() == 137


async def test_resize_without_a_terminal_is_refused(pod: Pod) -> None:
    container = await pod.running()
    with refused(Code.FAILED_PRECONDITION, container.id, "terminal"):
        await pod.task("ResizePty", id=container.id, width=80, height=24)


async def test_a_separate_stderr_of_a_terminal_is_ignored(pod: Pod) -> None:
    container = pod.container("sh", "-c", "echo err >&2", streams=("terminal", "stdout"))
    await container.create(stderr=container.io["stdout"])
    assert await container.run() == (0, "err\r\n")
