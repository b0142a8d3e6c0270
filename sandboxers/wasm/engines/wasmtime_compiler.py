"""Compiling with wasmtime, by its package; and whether what was compiled can be run, so that running need not ask."""

from __future__ import annotations

import wasmtime
from wasmtime import component as components

from common.errors import InvalidArgument
from sandboxers.wasm.engines.wasmtime import run_interfaces
from sandboxers.wasm.modules import Kind

# The packages of the world wasi:cli/command.
_OFFERED = ("wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/")


def compile_module(module: bytes, kind: Kind) -> bytes:
    """Return native code.

    :raise InvalidArgument: the module is malformed, imports what is not offered, or exports nothing to run.
    """
    config = wasmtime.Config()
    config.wasm_component_model = True
    engine = wasmtime.Engine(config)
    try:
        if kind is Kind.CORE:
            core = wasmtime.Module(engine, module)
            _check_core(engine, core)
            return bytes(core.serialize())
        component = components.Component(engine, module)
        _check_component(engine, component)
        return bytes(component.serialize())
    except wasmtime.WasmtimeError as error:
        raise InvalidArgument(f"not a valid WebAssembly module: {_chain(error)}") from None


def _check_core(engine: wasmtime.Engine, module: wasmtime.Module) -> None:
    linker, store = wasmtime.Linker(engine), wasmtime.Store(engine)
    linker.define_wasi()
    unknown = []
    for wanted in module.imports:
        try:
            linker.get(store, wanted.module, wanted.name or "")
        except wasmtime.WasmtimeError:
            unknown.append(f"{wanted.module}.{wanted.name}")
    if unknown:
        raise InvalidArgument(f"it imports what this engine does not offer: {', '.join(unknown)}")
    try:
        linker.instantiate_pre(module)
    except wasmtime.WasmtimeError as error:
        raise InvalidArgument(f"it cannot be linked: {_chain(error)}") from None
    if not any(
        export.name == "_start" and isinstance(export.type, wasmtime.FuncType) for export in module.exports
    ):
        raise InvalidArgument("it exports no function _start: it is a library, not a command")


def _check_component(engine: wasmtime.Engine, component: components.Component) -> None:
    unknown = [name for name in component.type.imports(engine) if not name.startswith(_OFFERED)]
    if unknown:
        raise InvalidArgument(f"it imports what this engine does not offer: {', '.join(unknown)}")
    for name in run_interfaces():
        interface = component.get_export_index(name)
        if interface is not None and component.get_export_index("run", interface) is not None:
            return
    raise InvalidArgument("it exports no wasi:cli/run of version 0.2: its world is not that of a command")


def _chain(error: Exception) -> str:
    """Return an error with its causes in one line."""
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())[:1000]
