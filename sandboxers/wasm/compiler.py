"""Compiling what the cache lacks: each thing once, whoever asks for it meanwhile, in programs of their own."""

from __future__ import annotations

import asyncio
import json
import os

from common.errors import DeadlineExceeded, Internal, ResourceExhausted
from common.failpoints import Failpoint, failpoint
from common.log import get_logger
from common.process.exits import ExitWatcher
from common.process.spawn import CAPTURE, own_program, run
from sandboxers.wasm import launch
from sandboxers.wasm.cache import Cache
from sandboxers.wasm.config import ModulesConfig

log = get_logger()

_PROGRAM = tuple(own_program("sandboxers.wasm.compile_main", with_packages=True))


class Compiler:
    """Adds to a cache. Lives in the daemon's event loop."""

    def __init__(self, config: ModulesConfig, cache: Cache, exits: ExitWatcher) -> None:
        self._config = config
        self._cache = cache
        self._exits = exits
        self._running: dict[str, asyncio.Task[None]] = {}
        # More at once would only make each slower.
        self._places = asyncio.Semaphore(os.cpu_count() or 1)

    async def compile(self, what: str, key: str, kind: str, source: int) -> None:
        """Make the entry `key` of the cache.

        :param what: MISSING_MODULE or MISSING_FILTER of `launch`.
        :param source: a file, which stays the caller's.
        :raise SandboxdError: it cannot be compiled, and why.
        """
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._compile(what, key, kind, os.dup(source)))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        # One of several who wait may give up; the others still want it.
        await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is being compiled."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _compile(self, what: str, key: str, kind: str, source: int) -> None:
        try:
            async with self._places:
                output = self._cache.new_file()
                try:
                    answer = await self._run(what, kind, source, output)
                    launch.raise_error(answer)
                    failpoint(Failpoint.MODULE_COMPILED)
                    self._cache.add(key, output, str(answer.get("checksum")))
                    failpoint(Failpoint.MODULE_CACHED)
                except BaseException:
                    self._cache.discard(output)
                    raise
                finally:
                    os.close(output)
        finally:
            os.close(source)

    async def _run(self, what: str, kind: str, source: int, output: int) -> launch.Message:
        is_module = what == launch.MISSING_MODULE
        engine, kind = (self._config.engine.value, kind) if is_module else ("-", "-")
        argv = [*_PROGRAM, engine, kind]
        argv += [str(self._config.compile_memory_mib), str(output)]
        try:
            completed = await run(
                argv,
                watcher=self._exits,
                stdin=source,
                stdout=CAPTURE,
                stderr=CAPTURE,
                pass_fds=(output,),
                timeout_s=self._config.compile_timeout_s,
            )
        except DeadlineExceeded:
            raise ResourceExhausted(
                f"{what}: compiling it takes more than {self._config.compile_timeout_s:g} s"
            ) from None
        log.info("wasm.compiled", what=what, kind=kind, exit_code=completed.status.code)
        try:
            answer: launch.Message = json.loads(completed.stdout)
        except ValueError:
            reason = completed.stderr.decode(errors="replace").strip()[-500:]
            raise ResourceExhausted(
                f"{what}: compiling it ended with code {completed.status.code}: {reason or 'without a word'}"
            ) from None
        if not isinstance(answer, dict):
            raise Internal(f"{what}: the compiler's answer cannot be understood")
        return answer
