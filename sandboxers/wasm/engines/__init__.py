"""The engines that run modules, behind one interface, each in a module that is imported where it runs only.

An engine compiles in a process of its own (`compile_process.py`). The others that the fork server forks only load what
was compiled, which is native code; the server itself does neither.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from common.errors import Unimplemented
from sandboxers.wasm.modules import Kind

# Exit codes of a module process that are not the module's own (docs/wasm.md).
TRAP_EXIT_CODE = 134
"""A trap: as an aborted program's (128 + SIGABRT), and as engines' own command lines have it."""
NOT_RUN_EXIT_CODE = 126
"""A module that could not be instantiated, as shells have it for what cannot be executed."""


class EngineName(enum.StrEnum):
    """The engines, by the value of `engine.name` in the configuration."""

    WASMTIME = "wasmtime"
    WASMEDGE = "wasmedge"


@dataclass(frozen=True, slots=True)
class Invocation:
    """How a module is run: what WASI tells it, and the most linear memory it may have (0: any)."""

    args: Sequence[str]
    env: Mapping[str, str]
    memory_limit_bytes: int = 0


class Program(Protocol):
    """A loaded module."""

    def run(self, invocation: Invocation) -> int:
        """Run it, with `/` as its only directory and our standard streams; return the exit code.

        What went wrong is told on standard error, a trap with the module's backtrace.
        """
        ...


class Engine(Protocol):
    """An engine."""

    @property
    def key(self) -> str:
        """What compiled code depends on beside the module: name, version, target; as part of a file name."""
        ...

    def draft(self, module: bytes, kind: Kind) -> bytes | None:
        """Return what can be loaded and run until compiled code is there; None where compiling is as quick.

        :raise InvalidArgument: as `compile`.
        """
        ...

    def compile(self, module: bytes, kind: Kind) -> bytes:
        """Return native code of a module that can be run, and of which the draft, if any, has been made before.

        :raise InvalidArgument: it is malformed, imports what is not offered (named), or exports nothing to run.
        """
        ...

    def load(self, path: str, kind: Kind) -> Program:
        """Map compiled code, or a draft, from a file.

        :raise ValueError: it is not what this engine has made.
        """
        ...

    def rehearse(self) -> None:
        """Do what a run does as far as that needs no module and starts no thread."""
        ...


def load_engine(name: EngineName) -> Engine:
    """Load an engine into this process.

    :raise Unimplemented: it is not installed.
    """
    try:
        match name:
            case EngineName.WASMTIME:
                from sandboxers.wasm.engines.wasmtime import Wasmtime

                return Wasmtime()
            case EngineName.WASMEDGE:
                from sandboxers.wasm.engines.wasmedge import WasmEdge

                return WasmEdge()
    except ImportError as error:
        raise Unimplemented(f"the engine {name} is not installed: {error}; see docs/wasm.md") from None
