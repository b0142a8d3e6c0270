"""Signals that ask the program to end, by how far it is."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from sandboxctl.embedded.interruption import Interruption


async def send(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)
    await asyncio.sleep(0.01)


async def test_at_first_they_cancel_and_what_is_cleaned_up_then_is_not_interrupted() -> None:
    cleaned_up = False

    async def work() -> None:
        nonlocal cleaned_up
        with interruption:
            try:
                await asyncio.sleep(60)
            finally:
                await send(signal.SIGINT)
                cleaned_up = True

    interruption = Interruption()
    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await send(signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned_up
    assert interruption.signum == signal.SIGTERM


async def test_what_blocks_the_loop_is_ended_at_once_and_what_follows_is_not() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    with Interruption() as interruption:
        with pytest.raises(asyncio.CancelledError), interruption.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            os.read(reading, 1)
        assert interruption.signum == signal.SIGTERM
        with interruption.at_once():
            os.kill(os.getpid(), signal.SIGINT)
        await send(signal.SIGINT)
        assert interruption.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    os.close(reading)
    os.close(writing)


async def test_what_comes_while_containers_start_is_told_afterwards() -> None:
    seen: list[signal.Signals] = []
    with Interruption() as interruption:
        interruption.postpone()
        await send(signal.SIGTERM)
        assert seen == []
        interruption.tell(seen.append)
        await send(signal.SIGINT)
        assert seen == [signal.SIGTERM, signal.SIGINT]
        interruption.ignore()
        await send(signal.SIGHUP)
    assert seen == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            await send(signal.SIGHUP)
        assert interruption.signum == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
