"""Standard streams over real FIFOs: what is opened, who holds what, who sees the end when."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import select
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import InvalidArgument, NotFound, SandboxdError
from common.task.stdio import NO_STDIO, Stdio, StdioSpec
from tests.unit.common.task.conftest import open_descriptors

MkFifo = Callable[[str], str]
ME = (os.getuid(), os.getgid())


def open_stdio(tmp_path: Path, stdin: str = "", stdout: str = "", stderr: str = "") -> Stdio:
    return Stdio(StdioSpec(False, stdin, stdout, stderr), ME, str(tmp_path))


def run(stdio: Stdio, script: str) -> subprocess.Popen[bytes]:
    """Start a shell on the streams, read or not, and keep none of its ends here."""
    asyncio.run(stdio.attend(timeout_s=0))
    stdin, stdout, stderr = stdio.child_fds
    process = subprocess.Popen(["/bin/sh", "-c", script], stdin=stdin, stdout=stdout, stderr=stderr)
    stdio.release_child()
    return process


def reader(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def at_end(fd: int) -> bool:
    """Whether a reader would see end-of-file now."""
    try:
        return os.read(fd, 65536) == b""
    except BlockingIOError:
        return False


# -- the streams -----------------------------------------------------------------------------------


def test_a_process_writes_into_the_engines_fifos(tmp_path: Path, fifo: MkFifo) -> None:
    out, err = fifo("out"), fifo("err")
    stdio = open_stdio(tmp_path, stdout=out, stderr=err)
    fds = [reader(out), reader(err)]
    run(stdio, "echo one; echo two >&2").wait()
    assert [os.read(fd, 100) for fd in fds] == [b"one\n", b"two\n"]
    assert [at_end(fd) for fd in fds] == [True, True], "the hold is no writer"
    stdio.close()
    for fd in fds:
        os.close(fd)


def test_without_streams_a_process_has_dev_null(tmp_path: Path) -> None:
    stdio = Stdio(NO_STDIO, ME, str(tmp_path))
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in stdio.child_fds] == ["/dev/null"] * 3
    stdio.close()


def test_a_process_can_reopen_its_output(tmp_path: Path, fifo: MkFifo) -> None:
    out = fifo("out")
    stdio = open_stdio(tmp_path, stdout=out)
    fd = reader(out)
    run(stdio, "echo direct; echo again > /dev/stdout").wait()
    assert os.read(fd, 100) == b"direct\nagain\n"
    stdio.close()
    os.close(fd)


def test_the_process_blocks_on_its_output_and_not_we(tmp_path: Path, fifo: MkFifo) -> None:
    stdio = open_stdio(tmp_path, stdin=fifo("in"), stdout=fifo("out"), stderr=fifo("err"))
    assert [os.get_blocking(fd) for fd in stdio.child_fds] == [True, True, True]
    assert [os.get_inheritable(fd) for fd in stdio.child_fds] == [False, False, False]
    stdio.close()


def test_a_reader_that_vanishes_kills_nobody(tmp_path: Path, fifo: MkFifo) -> None:
    out = fifo("out")
    stdio = open_stdio(tmp_path, stdout=out)
    fd = reader(out)
    process = run(stdio, "read _ < " + fifo("go") + "; echo still; echo here")
    os.close(fd)
    with open(tmp_path / "go", "w") as go:
        go.write("\n")
    assert process.wait() == 0
    fd = reader(out)
    assert os.read(fd, 100) == b"still\nhere\n", "what was written meanwhile is there for the next reader"
    stdio.close()
    os.close(fd)


async def test_an_engine_that_opens_late_is_waited_for(tmp_path: Path, fifo: MkFifo) -> None:
    out, err = fifo("out"), fifo("err")
    early = reader(out)
    stdio = open_stdio(tmp_path, stdout=out, stderr=err)
    attending = asyncio.create_task(stdio.attend())
    await asyncio.sleep(0.02)
    assert not attending.done(), "what is written to the second stream would have no reader"
    assert not at_end(early), "the first stream has not ended before it has begun"
    late = reader(err)
    await attending
    os.close(late)
    stdout, stderr = stdio.child_fds[1:]
    os.write(stdout, b"x")
    os.write(stderr, b"y")  # there is a hold: no EPIPE
    assert os.read(early, 10) == b"x"
    stdio.close()
    os.close(early)


async def test_an_engine_that_never_opens_is_not_waited_for_for_ever(tmp_path: Path, fifo: MkFifo) -> None:
    out = fifo("out")
    stdio = open_stdio(tmp_path, stdout=out)
    await stdio.attend(timeout_s=0.01)
    os.write(stdio.child_fds[1], b"x")
    fd = reader(out)
    assert os.read(fd, 10) == b"x"
    stdio.close()
    os.close(fd)


def test_without_a_reader_output_stops_at_the_pipes_size_and_goes_on_later(
    tmp_path: Path, fifo: MkFifo
) -> None:
    out = fifo("out")
    stdio = open_stdio(tmp_path, stdout=out)
    process = run(stdio, "head -c 1000000 /dev/zero")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    fd = os.open(out, os.O_RDONLY)
    received = 0
    while data := os.read(fd, 65536):
        received += len(data)
    assert received == 1_000_000
    assert process.wait() == 0
    stdio.close()
    os.close(fd)


# -- input -----------------------------------------------------------------------------------------


def test_input_ends_when_it_is_closed_and_not_when_a_writer_leaves(tmp_path: Path, fifo: MkFifo) -> None:
    source, out = fifo("in"), fifo("out")
    stdio = open_stdio(tmp_path, stdin=source, stdout=out)
    fd = reader(out)
    process = run(stdio, "cat")
    for text in (b"one", b"two"):  # an attached client that comes and goes
        with open(source, "wb", buffering=0) as writer:
            writer.write(text)
        assert select.select([fd], [], [], 5)[0]
        assert os.read(fd, 100) == text
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    stdio.close_stdin()
    stdio.close_stdin()
    assert process.wait(5) == 0
    stdio.close()
    os.close(fd)


def test_closing_input_cuts_nothing_off(tmp_path: Path, fifo: MkFifo) -> None:
    source, out = fifo("in"), fifo("out")
    stdio = open_stdio(tmp_path, stdin=source, stdout=out)
    fd = reader(out)
    with open(source, "wb", buffering=0) as writer:
        writer.write(b"x" * 50_000)
        stdio.close_stdin()
    process = run(stdio, "wc -c")
    assert process.wait(5) == 0
    assert int(os.read(fd, 100)) == 50_000
    stdio.close()
    os.close(fd)


# -- files -----------------------------------------------------------------------------------------


def test_a_log_file_is_made_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        stdio = open_stdio(tmp_path, stdout=f"file://{path}", stderr=f"file://{path}")
        run(stdio, "echo out; echo err >&2").wait()
        stdio.close()
    assert path.read_text() == "out\nerr\n" * 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# -- refusals --------------------------------------------------------------------------------------


def regular_file(directory: Path) -> str:
    (directory / "file").touch()
    return str(directory / "file")


def link_to_fifo(directory: Path) -> str:
    os.mkfifo(directory / "target")
    (directory / "link").symlink_to("target")
    return str(directory / "link")


def link_as_log(directory: Path) -> str:
    (directory / "log").symlink_to(directory / "elsewhere")
    return f"file://{directory}/log"


def fifo_as_log(directory: Path) -> str:
    os.mkfifo(directory / "fifo")
    return f"file://{directory}/fifo"


REFUSALS: list[tuple[Callable[[Path], str], type[SandboxdError], str]] = [
    (regular_file, InvalidArgument, "is not a FIFO"),
    (link_to_fifo, InvalidArgument, "is not a FIFO"),
    (lambda d: str(d), InvalidArgument, "is not a FIFO"),
    (lambda d: "/dev/null", InvalidArgument, "is not a FIFO"),
    (lambda d: f"{d}/none", NotFound, "does not exist"),
    (lambda d: f"{d}/none/x", NotFound, "does not exist"),
    (lambda d: f"{regular_file(d)}/x", InvalidArgument, "Not a directory"),
    (lambda d: f"{d}/{'n' * 300}", InvalidArgument, "too long"),
    (lambda d: f"{d}/a\0b", InvalidArgument, ""),
    (lambda d: "fifo", InvalidArgument, "absolute"),
    (lambda d: f"{d}/../x", InvalidArgument, "'..'"),
    (lambda d: "binary:///usr/bin/logger?id=1", InvalidArgument, "binary:// are not supported"),
    (lambda d: "ttrpc+unix:///run/s?streaming_id=x", InvalidArgument, "ttrpc+unix:// are not supported"),
    (link_as_log, InvalidArgument, "file://"),
    (fifo_as_log, InvalidArgument, "file://"),
    (lambda d: f"file://{d}", InvalidArgument, "file://"),
    (lambda d: f"file://{d}/none/log", InvalidArgument, "file://"),
    (lambda d: "file://log", InvalidArgument, "absolute"),
    (lambda d: f"file://{d}/a\0b", InvalidArgument, ""),
]


@pytest.mark.parametrize(("make", "error", "text"), REFUSALS)
@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_what_is_no_stream_is_refused_and_nothing_stays_open(
    tmp_path: Path, fifo: MkFifo, stream: str, make: Callable[[Path], str], error: type[Exception], text: str
) -> None:
    bad = make(tmp_path)
    if stream == "stdin" and bad.startswith("file://"):
        error, text = InvalidArgument, "file://"
    paths = {name: bad if name == stream else fifo(name) for name in ("stdin", "stdout", "stderr")}
    before = open_descriptors()
    with pytest.raises(error) as raised:
        open_stdio(tmp_path, **paths)
    assert text in str(raised.value)
    assert len(str(raised.value)) < 500
    assert open_descriptors() == before
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("spec", [("", "none", ""), ("none", "out", "")])
async def test_a_terminal_that_cannot_be_set_up_leaves_nothing(
    tmp_path: Path, fifo: MkFifo, spec: tuple[str, str, str]
) -> None:
    fifo("out")
    stdin, stdout, stderr = (str(tmp_path / name) if name else "" for name in spec)
    before = open_descriptors()
    with pytest.raises(SandboxdError):
        Stdio(StdioSpec(True, stdin, stdout, stderr), ME, str(tmp_path))
    with pytest.raises(OSError, match="path too long"):
        Stdio(StdioSpec(True, "", str(tmp_path / "out"), ""), ME, str(tmp_path / ("d" * 100)))
    assert open_descriptors() == before
    assert os.listdir(tmp_path) == ["out"]


async def test_the_stderr_of_a_terminal_is_not_opened(tmp_path: Path, fifo: MkFifo) -> None:
    spec = StdioSpec(True, "", fifo("out"), str(tmp_path / "none"))
    Stdio(spec, ME, str(tmp_path)).close()
    assert os.listdir(tmp_path) == ["out"]


def test_running_out_of_descriptors_leaves_nothing_open(tmp_path: Path, fifo: MkFifo) -> None:
    paths = {name: fifo(name) for name in ("stdin", "stdout", "stderr")}
    before = open_descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(line.split()[0]) for line in before}
    free = [number for number in range(1000) if number not in taken]
    failures = 0
    for room in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[room], limits[1]))
        try:
            stdio = open_stdio(tmp_path, **paths)
        except OSError as error:
            assert error.errno == errno.EMFILE
            failures += 1
        else:
            stdio.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert open_descriptors() == before
    assert 0 < failures < 12


def test_closing_twice_is_harmless(tmp_path: Path, fifo: MkFifo) -> None:
    stdio = open_stdio(tmp_path, stdin=fifo("in"), stdout=fifo("out"), stderr=fifo("err"))
    asyncio.run(stdio.attend(timeout_s=0))
    before = open_descriptors()
    stdio.close()
    other = os.open("/dev/zero", os.O_RDONLY)  # takes the number of one that was closed
    stdio.close()
    stdio.release_child()
    stdio.close_stdin()
    os.close(other)
    assert len(before - open_descriptors()) == 6
