"""wasmtime, by its Python package: core modules with WASI preview 1, components that export wasi:cli/run."""

from __future__ import annotations

import os
import sys
from typing import Any

import wasmtime
from wasmtime import component as components

from common.errors import InvalidArgument
from sandboxers.wasm.engines import NOT_RUN_EXIT_CODE, TRAP_EXIT_CODE, Invocation
from sandboxers.wasm.modules import Kind

_RUN_INTERFACE = "wasi:cli/run@0.2."
_RUN_VERSIONS = range(12)
# The packages of the world wasi:cli/command.
_OFFERED = ("wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/")
_BACKTRACE_VARIABLE = "WASMTIME_BACKTRACE_DETAILS"


class Wasmtime:
    """The engine (`Engine`)."""

    def __init__(self) -> None:
        # A file name and a line per frame would need debug information, which costs more than it tells here.
        os.environ.setdefault(_BACKTRACE_VARIABLE, "0")
        self._key = f"{_distribution()}-{os.uname().machine}"
        config = wasmtime.Config()
        config.wasm_component_model = True
        self._engine = wasmtime.Engine(config)
        self._core_linker = wasmtime.Linker(self._engine)
        self._core_linker.define_wasi()
        self._component_linker = components.Linker(self._engine)
        self._component_linker.add_wasip2()

    @property
    def key(self) -> str:
        return self._key

    def compile(self, module: bytes, kind: Kind) -> bytes:
        try:
            loaded = (wasmtime.Module if kind is Kind.CORE else components.Component)(self._engine, module)
        except wasmtime.WasmtimeError as error:
            raise InvalidArgument(f"not a valid WebAssembly module: {_chain(error)}") from None
        return bytes(loaded.serialize())

    def load(self, path: str, kind: Kind) -> CoreProgram | ComponentProgram:
        try:
            if kind is Kind.CORE:
                return CoreProgram(
                    self._engine, self._core_linker, wasmtime.Module.deserialize_file(self._engine, path)
                )
            return ComponentProgram(
                self._engine,
                self._component_linker,
                components.Component.deserialize_file(self._engine, path),
            )
        except wasmtime.WasmtimeError as error:
            raise ValueError(f"{path} is not code of this engine: {_chain(error)}") from None

    def rehearse(self) -> None:
        _store(self._engine, Invocation(["none"], {"PATH": "/"}, 1))


class CoreProgram:
    """A core module (`Program`)."""

    def __init__(self, engine: wasmtime.Engine, linker: wasmtime.Linker, module: wasmtime.Module) -> None:
        self._engine = engine
        self._linker = linker
        self._module = module
        self._linked: Any = None

    def link(self) -> None:
        try:
            self._linked = self._linker.instantiate_pre(self._module)
        except wasmtime.WasmtimeError as error:
            raise InvalidArgument(
                f"the module cannot be linked: {self._unknown_imports() or _chain(error)}"
            ) from None
        if "_start" not in {export.name for export in self._module.exports}:
            raise InvalidArgument("the module exports no function _start: it is a library, not a command")

    def run(self, invocation: Invocation) -> int:
        store = _store(self._engine, invocation)
        try:
            instance = self._linked.instantiate(store)
        except wasmtime.ExitTrap as exit:
            return exit.code & 0xFF
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            return _failed(error, NOT_RUN_EXIT_CODE)
        try:
            instance.exports(store)["_start"](store)
        except wasmtime.ExitTrap as exit:
            return exit.code & 0xFF
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            return _failed(error, TRAP_EXIT_CODE)
        return 0

    def _unknown_imports(self) -> str:
        unknown = []
        store = wasmtime.Store(self._engine)
        for wanted in self._module.imports:
            try:
                self._linker.get(store, wanted.module, wanted.name or "")
            except wasmtime.WasmtimeError:
                unknown.append(f"{wanted.module}.{wanted.name}")
        return f"it imports what this engine does not offer: {', '.join(unknown)}" if unknown else ""


class ComponentProgram:
    """A component (`Program`)."""

    def __init__(
        self, engine: wasmtime.Engine, linker: components.Linker, component: components.Component
    ) -> None:
        self._engine = engine
        self._linker = linker
        self._component = component
        self._run: components.ExportIndex | None = None

    def link(self) -> None:
        imports = self._component.type.imports(self._engine)
        unknown = [name for name in imports if not name.startswith(_OFFERED)]
        if unknown:
            raise InvalidArgument(
                f"the component imports what this engine does not offer: {', '.join(unknown)}"
            )
        self._run = self._find_run()
        if self._run is None:
            raise InvalidArgument(
                "the component exports no wasi:cli/run of version 0.2: its world is not that of a command"
            )

    def run(self, invocation: Invocation) -> int:
        store = _store(self._engine, invocation)
        assert self._run is not None
        try:
            instance = self._linker.instantiate(store, self._component)
        except wasmtime.ExitTrap as exit:
            return exit.code & 0xFF
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            return _failed(error, NOT_RUN_EXIT_CODE)
        function = instance.get_func(store, self._run)
        assert function is not None
        try:
            result = function(store)
        except wasmtime.ExitTrap as exit:
            return exit.code & 0xFF
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            return _failed(error, TRAP_EXIT_CODE)
        return int(getattr(result, "tag", None) == "err")

    def _find_run(self) -> components.ExportIndex | None:
        for patch in _RUN_VERSIONS:
            interface = self._component.get_export_index(f"{_RUN_INTERFACE}{patch}")
            if interface is not None:
                return self._component.get_export_index("run", interface)
        return None


def _distribution() -> str:
    """Return the package's name and version, as its installer has it; what reads it properly weighs 2 MiB."""
    suffix = ".dist-info"
    beside = os.listdir(os.path.dirname(os.path.dirname(wasmtime.__file__)))
    found = [name for name in beside if name.startswith("wasmtime-") and name.endswith(suffix)]
    return found[0].removesuffix(suffix) if found else "wasmtime"


def _store(engine: wasmtime.Engine, invocation: Invocation) -> wasmtime.Store:
    wasi = wasmtime.WasiConfig()
    wasi.argv = list(invocation.args)
    wasi.env = list(invocation.env.items())
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    wasi.preopen_dir("/", "/")
    store = wasmtime.Store(engine)
    store.set_wasi(wasi)
    if invocation.memory_limit_bytes > 0:
        store.set_limits(memory_size=invocation.memory_limit_bytes)
    return store


def _failed(error: Exception, code: int) -> int:
    print(str(error), file=sys.stderr, flush=True)
    return code


def _chain(error: Exception) -> str:
    """Return an error with its causes in one line."""
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())[:1000]
