"""The command line of an OCI runtime, by a program that records it and behaves as it is told."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    SandboxdError,
)
from common.oci.runtime import OciRuntime
from common.process.exits import ExitWatcher

PROGRAM = """\
#!/bin/sh
# Appends its arguments to $0.argv, one command a line; then does what $0.does says.
printf '%s\\037' "$@" >> "$0.argv"; echo >> "$0.argv"
log=; pid_file=; previous=
for argument in "$@"; do
    case $previous in --log) log=$argument;; --pid-file) pid_file=$argument;; esac
    previous=$argument
done
. "$0.does"
"""
WRITE_PID = 'echo 4711 > "$pid_file"'


class Fake:
    """A runtime, the program behind it, and a bundle."""

    def __init__(self, directory: Path, watcher: ExitWatcher) -> None:
        self.program = directory / "fakerun"
        self.program.write_text(PROGRAM)
        self.program.chmod(0o755)
        self.root = directory / "root"
        self.root.mkdir()
        self.bundle = directory / "bundle"
        self.bundle.mkdir()
        self.runtime = OciRuntime(str(self.program), str(self.root), watcher, timeout_s=5)
        self.does("")

    def does(self, script: str) -> None:
        Path(f"{self.program}.does").write_text(script + "\n")

    def fails(self, log: str, code: int = 1) -> None:
        text = self.bundle / "says"
        text.write_text(log)
        self.does(f'cat "{text}" >> "$log"; exit {code}')

    def commands(self) -> list[list[str]]:
        path = Path(f"{self.program}.argv")
        lines = path.read_text().split("\x1f\n") if path.exists() else []
        return [line.split("\x1f") for line in lines if line]

    async def create(self, **options: Any) -> int:
        null = os.open("/dev/null", os.O_RDWR)
        settings = {"console_socket": None, "systemd_cgroup": False, **options}
        try:
            return await self.runtime.create("c1", str(self.bundle), (null, null, null), **settings)
        finally:
            os.close(null)

    async def exec(self, console_socket: str | None = None) -> int:
        null = os.open("/dev/null", os.O_RDWR)
        try:
            path = f"{self.bundle}/exec-e.json"
            return await self.runtime.exec("c1", path, (null, null, null), console_socket)
        finally:
            os.close(null)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Fake]:
    watcher = ExitWatcher()
    yield Fake(tmp_path, watcher)
    await asyncio.sleep(0.1)
    watcher.close()


def entry(message: str, level: str = "error") -> str:
    return json.dumps({"level": level, "msg": message, "time": "now"}) + "\n"


# -- what is called --------------------------------------------------------------------------------


async def test_create_names_root_log_bundle_and_pid_file(fake: Fake) -> None:
    fake.does(WRITE_PID)
    assert await fake.create() == 4711
    bundle = str(fake.bundle)
    common = ["--root", str(fake.root), "--log", f"{bundle}/log.json", "--log-format", "json"]
    options = ["--bundle", bundle, "--pid-file", f"{bundle}/init.pid"]
    assert fake.commands() == [[*common, "create", *options, "c1"]]
    assert fake.runtime.invocations == 1


async def test_the_systemd_driver_and_a_console_are_asked_for(fake: Fake) -> None:
    fake.does(WRITE_PID)
    await fake.create(console_socket="/tty.sock", systemd_cgroup=True)
    (argv,) = fake.commands()
    assert argv.index("--systemd-cgroup") < argv.index("create")
    assert argv[argv.index("--console-socket") + 1] == "/tty.sock"


async def test_an_exec_is_detached_and_its_files_tell_of_it_until_it_is_on_record(fake: Fake) -> None:
    fake.does(WRITE_PID + '; echo > "$log"')
    assert await fake.exec("/tty.sock") == 4711
    (argv,) = fake.commands()
    path = f"{fake.bundle}/exec-e.json"
    assert argv[argv.index("exec") + 1 :] == [
        "--detach", "--process", path, "--pid-file", f"{path}.pid", "--console-socket", "/tty.sock", "c1",
    ]  # fmt: skip
    assert fake.runtime.pid_of_exec(path) == 4711
    fake.runtime.forget_exec(path)
    assert os.listdir(fake.bundle) == []
    assert fake.runtime.pid_of_exec(path) == 0


async def test_the_other_commands_are_one_invocation_each(fake: Fake) -> None:
    runtime, bundle = fake.runtime, str(fake.bundle)
    (fake.root / "c1").mkdir()
    await runtime.start("c1", bundle)
    await runtime.pause("c1", bundle)
    await runtime.resume("c1", bundle)
    await runtime.update("c1", bundle, b'{"cpu": {}}')
    await runtime.delete("c1", bundle)
    tails = [argv[6:] for argv in fake.commands()]
    assert tails == [
        ["start", "c1"],
        ["pause", "c1"],
        ["resume", "c1"],
        ["update", "--resources", f"{bundle}/resources.json", "c1"],
        ["delete", "--force", "c1"],
    ]
    assert (fake.bundle / "resources.json").read_bytes() == b'{"cpu": {}}'
    assert runtime.invocations == 5


async def test_deleting_what_the_runtime_does_not_know_costs_nothing(fake: Fake) -> None:
    await fake.runtime.delete("c1", str(fake.bundle))
    assert fake.commands() == []


async def test_streams_are_handed_to_the_runtime(fake: Fake) -> None:
    fake.does(WRITE_PID + "; echo hello")
    read_end, write_end = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    await fake.runtime.create("c1", str(fake.bundle), (null, write_end, null), None, False)
    os.close(write_end)
    os.close(null)
    assert os.read(read_end, 100) == b"hello\n"
    os.close(read_end)


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("executable file `nonesuch` not found in $PATH: No such file or directory", InvalidArgument),
        ('exec: "nonesuch": executable file not found in $PATH', InvalidArgument),
        ("exec format error", InvalidArgument),
        ("open executable: Permission denied", InvalidArgument),
        ("the container `c1` is not running", FailedPrecondition),
        ("cannot exec in a stopped container: container not running", FailedPrecondition),
        ("exec failed: cannot exec in a stopped container", FailedPrecondition),
        ("container `c1` does not exist", NotFound),
        ("something else entirely", Internal),
    ],
)
async def test_the_runtimes_own_words_choose_the_error(
    fake: Fake, message: str, error: type[SandboxdError]
) -> None:
    fake.fails(entry(message))
    with pytest.raises(error) as raised:
        await fake.runtime.start("c1", str(fake.bundle))
    assert type(raised.value) is error
    assert str(raised.value) == f"fakerun start of container c1: {message}"


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (entry("old") + entry("new") + entry("hint", "info"), "new"),
        (entry("cause", "fatal") + entry("w", "warning"), "cause"),
        ("plain words\n", "plain words"),
        (json.dumps({"msg": "over lines {", "level": "error"}, indent=2) + "\n", "over lines {"),
        (entry("good") + "{half a li", "good"),
        ('[1]\n"x"\n7\n', "7"),
        ("\x00\x01\n", "\x00\x01"),
        ("x" * 50_000, "x" * 1000),
        (entry("y" * 40_000), "y"),
        ("", "exit code 3 without a message"),
        ("[" * 10_000 + "\n", "["),
    ],
)
async def test_whatever_is_in_the_log_the_error_says_the_most_it_can(fake: Fake, log: str, text: str) -> None:
    fake.fails(log, code=3)
    with pytest.raises(Internal) as raised:
        await fake.runtime.pause("c1", str(fake.bundle))
    assert text in str(raised.value)
    assert len(str(raised.value)) < 2000


async def test_an_error_of_an_earlier_command_is_not_blamed_on_a_later_one(fake: Fake) -> None:
    fake.fails(entry("container `c1` does not exist"))
    with pytest.raises(NotFound):
        await fake.runtime.pause("c1", str(fake.bundle))
    fake.does("exit 9")
    with pytest.raises(Internal, match="exit code 9 without a message"):
        await fake.runtime.pause("c1", str(fake.bundle))


@pytest.mark.parametrize("script", ["", ': > "$pid_file"', 'echo many > "$pid_file"'])
async def test_a_runtime_that_tells_no_pid_is_at_fault(fake: Fake, script: str) -> None:
    fake.does(script)
    for call in (fake.create, fake.exec):
        with pytest.raises(Internal, match=r"left no pid in .*\.pid"):
            await call()


async def test_a_runtime_that_hangs_is_killed_and_named(fake: Fake) -> None:
    fake.runtime.timeout_s = 0.1
    fake.does("exec sleep 60")
    with pytest.raises(DeadlineExceeded, match="fakerun"):
        await fake.runtime.start("c1", str(fake.bundle))


async def test_a_runtime_that_a_signal_ended_is_an_error(fake: Fake) -> None:
    fake.does("kill -9 $$")
    with pytest.raises(Internal, match="137"):
        await fake.runtime.start("c1", str(fake.bundle))


async def test_a_runtime_that_is_not_installed_is_named(fake: Fake) -> None:
    fake.program.unlink()
    with pytest.raises(NotFound, match="fakerun"):
        await fake.runtime.start("c1", str(fake.bundle))
