"""Compiling what the cache lacks: each thing once, whoever asks for it meanwhile, in processes of their own.

A module whose engine takes long to compile it can be run as a draft at once, and is compiled for the starts to come.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from weakref import WeakValueDictionary

from common.errors import Internal, NotFound, ResourceExhausted, SandboxdError, Unavailable
from common.failpoints import Failpoint, failpoint
from common.log import get_logger
from common.process.exits import ExitWatcher
from common.process.spawn import Child
from sandboxers.wasm import launch
from sandboxers.wasm.cache import Cache
from sandboxers.wasm.config import ModulesConfig
from sandboxers.wasm.fork_server import ForkServer, receive
from sandboxers.wasm.launch import Missing, What

log = get_logger()


class Compiler:
    """Adds to a cache. Lives in the daemon's event loop."""

    def __init__(self, config: ModulesConfig, cache: Cache, exits: ExitWatcher, server: ForkServer) -> None:
        self._config = config
        self._cache = cache
        self._exits = exits
        self._server = server
        self._running: dict[str, asyncio.Task[str]] = {}
        self._improving: dict[str, asyncio.Task[None]] = {}
        self._beyond_improvement: set[str] = set()
        # More at once would only make each slower.
        self._places = asyncio.Semaphore(os.cpu_count() or 1)
        self._place_behind = asyncio.Semaphore(1)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def compile(self, missing: Missing, source: int, pod: str) -> str:
        """Make an entry of the cache; return its key, which is that of a draft where compiling takes longer.

        :param source: a file, which stays the caller's.
        :param pod: who wants it; a pod gets one thing after the other, and so none that has many keeps others waiting.
        :raise SandboxdError: it cannot be compiled, and why.
        """
        turn = self._turns.setdefault(pod, asyncio.Lock())
        async with turn:
            return await self._shared(missing, source)

    async def close(self) -> None:
        """Give up what is being compiled."""
        tasks = [*self._running.values(), *self._improving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _shared(self, missing: Missing, source: int) -> str:
        task = self._running.get(missing.key)
        if task is None:
            # It may have been made since who asks has looked.
            if self._cache.target(missing.key) != missing.unusable:
                return missing.key
            task = asyncio.create_task(self._compile(missing, os.dup(source)))
            self._running[missing.key] = task
            task.add_done_callback(lambda _: self._running.pop(missing.key, None))
        # One of several who wait may give up; the others still want it.
        return await asyncio.shield(task)

    async def _compile(self, missing: Missing, source: int) -> str:
        try:
            async with self._places:
                key = await self._make(missing, source)
            if key != missing.key:
                self._improve(missing, source)
            return key
        finally:
            os.close(source)

    def _improve(self, missing: Missing, source: int) -> None:
        key = missing.key
        if key in self._improving or key in self._beyond_improvement:
            return
        task = asyncio.create_task(self._make_native(missing._replace(what=What.NATIVE), os.dup(source)))
        self._improving[key] = task
        task.add_done_callback(lambda _: self._improving.pop(key, None))

    async def _make_native(self, missing: Missing, source: int) -> None:
        try:
            async with self._place_behind:
                await self._make(missing, source)
        except (SandboxdError, OSError) as error:
            # The draft runs as well; what is the module's own fault shall not be tried at each of its starts.
            if not isinstance(error, Unavailable | OSError):
                self._beyond_improvement.add(missing.key)
            log.warning("wasm.not_compiled", key=missing.key, error=error)
        finally:
            os.close(source)

    async def _make(self, missing: Missing, source: int) -> str:
        """Make what is asked for; return the key of what was made."""
        output = self._cache.new_file()
        try:
            answer = await self._order(missing, source, output)
            launch.raise_error(answer)
            failpoint(Failpoint.MODULE_COMPILED)
            key = f"{missing.key}-draft" if answer.get("draft") else missing.key
            self._cache.add(key, output, str(answer.get("checksum")))
            failpoint(Failpoint.MODULE_CACHED)
            return key
        except BaseException:
            self._cache.discard(output)
            raise
        finally:
            os.close(output)

    async def _order(self, missing: Missing, source: int, output: int) -> launch.Message:
        """Return what a compile process answers."""
        answer = await self._try(missing, source, output)
        if answer is None:
            # A server that dies with an order in its hands has taken it along.
            await self._server.ensure_alive()
            answer = await self._try(missing, source, output)
        if answer is None:
            raise Internal(f"the process that should compile the {missing.what} has died")
        return answer

    async def _try(self, missing: Missing, source: int, output: int) -> launch.Message | None:
        """Return None if no process has ever said a word."""
        limits = self._config
        order = launch.Order(
            missing.what,
            missing.digest,
            missing.kind,
            limits.compile_memory_mib,
            # What needs the whole cache would drive out all that others have there.
            limits.cache_size_mib // 2,
            limits.compile_timeout_s,
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child: Child | None = None
        with ours:
            ours.setblocking(False)
            launch.tell_senders(ours)
            try:
                async with asyncio.timeout(limits.compile_timeout_s):
                    with theirs:
                        await self._server.launch(
                            {"compile": order._asdict()}, [theirs.fileno(), source, output]
                        )
                    with self._exits.adoption():
                        begun = await receive(ours)
                        if begun is None:
                            return None
                        launch.raise_error(begun.message)
                        child = Child(self._exits, begun.sender, "compile process")
                    answer = await _answer(ours)
                    if answer is None:
                        code = (await child.wait()).code
                        raise ResourceExhausted(
                            f"compiling the {missing.what} ended with code {code}: it may take more address "
                            f"space than modules.compile_memory_mib ({limits.compile_memory_mib} MiB)"
                        )
            except TimeoutError:
                raise ResourceExhausted(
                    f"compiling the {missing.what} takes more than {limits.compile_timeout_s:g} s"
                ) from None
            finally:
                if child is not None:
                    # It has said all, or shall say no more.
                    with suppress(NotFound):
                        child.signal(signal.SIGKILL)
        log.info("wasm.compiled", what=missing.what, kind=missing.kind)
        return answer


async def _answer(channel: socket.socket) -> launch.Message | None:
    """Wait for what a process says that has worked on what it was given, so that anything may come of it."""
    try:
        received = await receive(channel)
    except ValueError:
        raise Internal("the compile process's answer cannot be understood") from None
    if received is None:
        return None
    for fd in received.fds:
        os.close(fd)
    if not isinstance(received.message, dict):
        raise Internal("the compile process's answer cannot be understood")
    return received.message
