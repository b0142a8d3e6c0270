"""Compiling with wasmtime; and whether what was compiled can be run, so that running need not ask."""

from __future__ import annotations

from ctypes import byref, c_void_p

from common.errors import InvalidArgument
from sandboxers.wasm.engines.imports import refuse_imports
from sandboxers.wasm.engines.libwasmtime import Bytes, LibWasmtime, Objects, Value, WasmtimeError

_START = "_start"
_FUNCTION = 0  # WASM_EXTERN_FUNC
_RUN_INTERFACE = "wasi:cli/run@0.2."
_RUN_VERSIONS = range(12)
_RUN = b"run"
_NO_LIMIT = -1
_NO_ROOM = "resource limit exceeded"


def compile_core(library: LibWasmtime, engine: int, linker: int, module: bytes) -> bytes:
    """Return native code of a core module.

    :param linker: defines what is offered.
    :raise InvalidArgument: it imports what is not offered, or exports nothing to run.
    :raise WasmtimeError: it is malformed.
    """
    compiled, code = c_void_p(), Bytes()
    library.check(library.wasmtime_module_new(engine, module, len(module), byref(compiled)))
    _check_core(library, engine, linker, compiled)
    library.check(library.wasmtime_module_serialize(compiled, byref(code)))
    return code.content()


def compile_component(library: LibWasmtime, engine: int, linker: int, module: bytes) -> bytes:
    """Return native code of a component. Raises as `compile_core` does."""
    compiled, code = c_void_p(), Bytes()
    library.check(library.wasmtime_component_new(engine, module, len(module), byref(compiled)))
    _check_component(library, engine, linker, compiled)
    library.check(library.wasmtime_component_serialize(compiled, byref(code)))
    return code.content()


def find_run(library: LibWasmtime, component: c_void_p) -> int | None:
    """Return the index of the function that makes a component a command; None if it is none."""
    find = library.wasmtime_component_get_export_index
    for patch in _RUN_VERSIONS:
        name = f"{_RUN_INTERFACE}{patch}".encode()
        if interface := find(component, None, name, len(name)):
            index: int | None = find(component, interface, _RUN, len(_RUN))
            return index
    return None


def _check_core(library: LibWasmtime, engine: int, linker: int, module: c_void_p) -> None:
    imports, exports, linked = Objects(), Objects(), c_void_p()
    context = library.wasmtime_store_context(library.wasmtime_store_new(engine, None, None))
    library.wasmtime_module_imports(module, byref(imports))
    unknown = []
    for wanted in imports.all():
        space = library.wasm_importtype_module(wanted).contents.content()
        name = library.wasm_importtype_name(wanted).contents.content()
        if not library.wasmtime_linker_get(
            linker, context, space, len(space), name, len(name), byref(Value())
        ):
            unknown.append(f"{space.decode(errors='replace')}.{name.decode(errors='replace')}")
    refuse_imports(unknown)
    try:
        library.check(library.wasmtime_linker_instantiate_pre(linker, module, byref(linked)))
    except WasmtimeError as error:
        raise InvalidArgument(f"it cannot be linked: {error.in_one_line()}") from None
    library.wasmtime_module_exports(module, byref(exports))
    if not any(
        library.wasm_exporttype_name(export).contents.text() == _START
        and library.wasm_externtype_kind(library.wasm_exporttype_type(export)) == _FUNCTION
        for export in exports.all()
    ):
        raise InvalidArgument("it exports no function _start: it is a library, not a command")


def _check_component(library: LibWasmtime, engine: int, linker: int, component: c_void_p) -> None:
    if find_run(library, component) is None:
        raise InvalidArgument("it exports no wasi:cli/run of version 0.2: its world is not that of a command")
    store = library.wasmtime_store_new(engine, None, None)
    # The linker compares imports with what it offers, by interface, version and type, before it makes an instance.
    # Since this store has room for none, nothing of the component ever runs.
    library.wasmtime_store_limiter(store, _NO_LIMIT, _NO_LIMIT, 0, _NO_LIMIT, _NO_LIMIT)
    context = library.wasmtime_store_context(store)
    try:
        library.check(
            library.wasmtime_component_linker_instantiate(linker, context, component, byref(Value()))
        )
    except WasmtimeError as error:
        if not str(error).startswith(_NO_ROOM):
            raise InvalidArgument(f"it cannot be linked: {error.in_one_line()}") from None
