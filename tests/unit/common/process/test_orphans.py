"""Programs that a dead daemon has left behind: only our own are waited for, all of them under one limit."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.process.orphans import outlive

WORDS = ["--root", f"/nowhere/{os.getpid()}"]


@pytest.fixture
def leave() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start programs with the words in their command lines; they are ended with the test."""
    left: list[subprocess.Popen[bytes]] = []

    def start(script: str, user: int | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sh", "-c", script, "sh", *WORDS], user=user, cwd="/")
        left.append(process)
        # The kernel lets go of the parent a moment before it has set the command line up.
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.001)
        return process

    yield start
    for process in left:
        process.kill()
        process.wait()


async def test_their_end_is_waited_for(leave: Callable[..., subprocess.Popen[bytes]]) -> None:
    program = leave("sleep 0.3; exit 5")
    await outlive(WORDS, timeout_s=20)
    assert program.wait() == 5


async def test_those_that_run_on_are_killed_when_one_limit_is_over(
    leave: Callable[..., subprocess.Popen[bytes]],
) -> None:
    programs = [leave("while :; do sleep 0.1; done") for _ in range(5)]
    async with asyncio.timeout(12):
        await outlive(WORDS, timeout_s=3)
    assert [program.wait() for program in programs] == [-9] * 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start another user's program")
async def test_a_program_of_another_user_is_none_of_ours(
    leave: Callable[..., subprocess.Popen[bytes]],
) -> None:
    strange = leave("while :; do sleep 0.1; done", user=65534)
    async with asyncio.timeout(20):
        await outlive(WORDS, timeout_s=30)
    assert strange.poll() is None
