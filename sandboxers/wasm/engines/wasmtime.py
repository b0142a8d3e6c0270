"""wasmtime: core modules with WASI preview 1, components that export wasi:cli/run."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from ctypes import byref, c_void_p

from common.errors import InvalidArgument
from sandboxers.wasm.engines import NOT_RUN_EXIT_CODE, TRAP_EXIT_CODE, Invocation
from sandboxers.wasm.engines.libwasmtime import LibWasmtime, Value, WasmtimeError, strings
from sandboxers.wasm.engines.wasmtime_compiler import compile_component, compile_core, find_run
from sandboxers.wasm.modules import Kind

_START = b"_start"
_BACKTRACE_VARIABLE = "WASMTIME_BACKTRACE_DETAILS"
_NO_LIMIT = -1


class Wasmtime:
    """The engine (`Engine`). What it makes lives as long as the process, which runs one module or compiles one."""

    def __init__(self) -> None:
        # A file name and a line per frame would need debug information, which costs more than it tells here.
        os.environ.setdefault(_BACKTRACE_VARIABLE, "0")
        library = self._library = LibWasmtime()
        config = library.wasm_config_new()
        library.wasmtime_config_wasm_component_model_set(config, True)
        self._engine = library.wasm_engine_new_with_config(config)
        self._core_linker = library.wasmtime_linker_new(self._engine)
        library.check(library.wasmtime_linker_define_wasi(self._core_linker))
        self._component_linker = library.wasmtime_component_linker_new(self._engine)
        library.check(library.wasmtime_component_linker_add_wasip2(self._component_linker))

    @property
    def key(self) -> str:
        return f"{self._library.version}-{os.uname().machine}"

    def draft(self, module: bytes, kind: Kind) -> None:
        """It compiles in less time than others take to read a module."""

    def compile(self, module: bytes, kind: Kind) -> bytes:
        try:
            if kind is Kind.CORE:
                return compile_core(self._library, self._engine, self._core_linker, module)
            return compile_component(self._library, self._engine, self._component_linker, module)
        except WasmtimeError as error:
            raise InvalidArgument(f"not a valid WebAssembly module: {error.in_one_line()}") from None

    def load(self, path: str, kind: Kind) -> CoreProgram | ComponentProgram:
        library, loaded = self._library, c_void_p()
        deserialize = (
            library.wasmtime_module_deserialize_file
            if kind is Kind.CORE
            else library.wasmtime_component_deserialize_file
        )
        try:
            library.check(deserialize(self._engine, path.encode(), byref(loaded)))
        except WasmtimeError as error:
            raise ValueError(f"{path} is not code of this engine: {error}") from None
        if kind is Kind.CORE:
            return CoreProgram(library, self._engine, self._core_linker, loaded)
        return ComponentProgram(library, self._engine, self._component_linker, loaded)

    def rehearse(self) -> None:
        # Without a root: here that would be the host's, and stay open.
        wasi = _configure(self._library, Invocation(["none"], {"PATH": "/"}))
        _make_context(self._library, self._engine, wasi, 1)


class _Program(ABC):
    """What both kinds have in common."""

    def __init__(self, library: LibWasmtime, engine: int) -> None:
        self._library = library
        self._engine = engine
        self._context = 0

    def run(self, invocation: Invocation) -> int:
        library, wasi = self._library, _configure(self._library, invocation)
        if not library.wasi_config_preopen_dir(wasi, b"/", b"/", True):
            print("the root directory cannot be opened", file=sys.stderr, flush=True)
            return NOT_RUN_EXIT_CODE
        self._context = _make_context(library, self._engine, wasi, invocation.memory_limit_bytes)
        code = NOT_RUN_EXIT_CODE
        try:
            self._instantiate()
            code = TRAP_EXIT_CODE
            return self._call()
        except WasmtimeError as error:
            if error.exit_code is not None:
                return error.exit_code & 0xFF
            print(error, file=sys.stderr, flush=True)
            return code

    @abstractmethod
    def _instantiate(self) -> None:
        """Make an instance in the store."""

    @abstractmethod
    def _call(self) -> int:
        """Call what makes it a command; return the exit code where that returns."""


class CoreProgram(_Program):
    """A core module (`Program`)."""

    def __init__(self, library: LibWasmtime, engine: int, linker: int, module: c_void_p) -> None:
        super().__init__(library, engine)
        self._linker = linker
        self._module = module
        self._instance = Value()

    def _instantiate(self) -> None:
        library, trap = self._library, c_void_p()
        instance = byref(self._instance)
        error = library.wasmtime_linker_instantiate(
            self._linker, self._context, self._module, instance, byref(trap)
        )
        library.check(error, trap)

    def _call(self) -> int:
        library, trap, start = self._library, c_void_p(), Value()
        instance = byref(self._instance)
        library.wasmtime_instance_export_get(self._context, instance, _START, len(_START), byref(start))
        # The function itself comes after the kind of what is exported.
        function = byref(start, type(start).is_ok.offset)
        library.check(
            library.wasmtime_func_call(self._context, function, None, 0, None, 0, byref(trap)), trap
        )
        return 0


class ComponentProgram(_Program):
    """A component (`Program`)."""

    def __init__(self, library: LibWasmtime, engine: int, linker: int, component: c_void_p) -> None:
        super().__init__(library, engine)
        self._linker = linker
        self._component = component
        self._instance = Value()

    def _instantiate(self) -> None:
        library = self._library
        library.check(
            library.wasmtime_component_linker_instantiate(
                self._linker, self._context, self._component, byref(self._instance)
            )
        )

    def _call(self) -> int:
        library, function, result = self._library, Value(), Value()
        library.wasmtime_component_instance_get_func(
            byref(self._instance), self._context, find_run(library, self._component), byref(function)
        )
        library.check(
            library.wasmtime_component_func_call(byref(function), self._context, None, 0, byref(result), 1)
        )
        return int(not result.is_ok)


def _configure(library: LibWasmtime, invocation: Invocation) -> int:
    """Return a configuration of WASI that has all but directories."""
    wasi = library.wasi_config_new()
    args, names, values = list(invocation.args), list(invocation.env), list(invocation.env.values())
    library.wasi_config_set_argv(wasi, len(args), strings(args))
    library.wasi_config_set_env(wasi, len(names), strings(names), strings(values))
    library.wasi_config_inherit_stdin(wasi)
    library.wasi_config_inherit_stdout(wasi)
    library.wasi_config_inherit_stderr(wasi)
    # That of the pod, as for any program.
    library.wasi_config_inherit_network(wasi)
    library.wasi_config_allow_ip_name_lookup(wasi, True)
    return int(wasi)


def _make_context(library: LibWasmtime, engine: int, wasi: int, memory_limit_bytes: int) -> int:
    """Make a store for one instance, with WASI; return its context."""
    store = library.wasmtime_store_new(engine, None, None)
    context = library.wasmtime_store_context(store)
    library.check(library.wasmtime_context_set_wasi(context, wasi))
    if memory_limit_bytes > 0:
        others = [_NO_LIMIT] * 4
        library.wasmtime_store_limiter(store, memory_limit_bytes, *others)
    return int(context)
