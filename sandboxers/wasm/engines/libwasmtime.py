"""What compiling and running a module needs of wasmtime's C library, which comes with its Python package.

The package's own interface is complete, and so 600 functions with their types, around which every module process
counts references and so copies memory: 20 modules with their fork server took 107 MiB with it and take 81 without
(PSS). And it takes 100 ms to be loaded.

Sources: the headers wasm.h, wasi.h, wasmtime/*.h and wasmtime/component/*.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any, Final

_ERROR = c_void_p
_STRINGS = POINTER(c_char_p)


class Bytes(Structure):
    """wasm_byte_vec_t."""

    _fields_ = (("size", c_size_t), ("data", c_void_p))

    def content(self) -> bytes:
        """Return a copy of it."""
        return ctypes.string_at(self.data, self.size) if self.data else b""

    def text(self) -> str:
        """Return it as a text, without the null byte that ends some of them."""
        return self.content().rstrip(b"\0").decode(errors="replace")


class Objects(Structure):
    """A vector of pointers: wasm_importtype_vec_t, wasm_exporttype_vec_t."""

    _fields_ = (("size", c_size_t), ("data", POINTER(c_void_p)))

    def all(self) -> list[int]:
        """Return its pointers."""
        return [pointer for pointer in self.data[: self.size] if pointer] if self.size else []


# By name: what it returns and takes. All objects are pointers; those of type _ERROR are null where all went well.
_FUNCTIONS: Final[Mapping[str, tuple[Any, tuple[Any, ...]]]] = {
    "wasm_config_new": (c_void_p, ()),
    "wasmtime_config_wasm_component_model_set": (None, (c_void_p, c_bool)),
    "wasm_engine_new_with_config": (c_void_p, (c_void_p,)),
    "wasmtime_error_message": (None, (c_void_p, c_void_p)),
    "wasmtime_error_exit_status": (c_bool, (c_void_p, c_void_p)),
    "wasm_trap_message": (None, (c_void_p, c_void_p)),
    "wasi_config_new": (c_void_p, ()),
    "wasi_config_set_argv": (c_bool, (c_void_p, c_size_t, _STRINGS)),
    "wasi_config_set_env": (c_bool, (c_void_p, c_size_t, _STRINGS, _STRINGS)),
    "wasi_config_inherit_stdin": (None, (c_void_p,)),
    "wasi_config_inherit_stdout": (None, (c_void_p,)),
    "wasi_config_inherit_stderr": (None, (c_void_p,)),
    "wasi_config_inherit_network": (None, (c_void_p,)),
    "wasi_config_allow_ip_name_lookup": (None, (c_void_p, c_bool)),
    "wasi_config_preopen_dir": (c_bool, (c_void_p, c_char_p, c_char_p, c_bool)),
    "wasmtime_store_new": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "wasmtime_store_context": (c_void_p, (c_void_p,)),
    "wasmtime_store_limiter": (None, (c_void_p, *[c_int64] * 5)),
    "wasmtime_context_set_wasi": (_ERROR, (c_void_p, c_void_p)),
    "wasmtime_linker_new": (c_void_p, (c_void_p,)),
    "wasmtime_linker_define_wasi": (_ERROR, (c_void_p,)),
    "wasmtime_linker_get": (c_bool, (c_void_p, c_void_p, *[c_char_p, c_size_t] * 2, c_void_p)),
    "wasmtime_linker_instantiate_pre": (_ERROR, (c_void_p, c_void_p, c_void_p)),
    "wasm_importtype_module": (POINTER(Bytes), (c_void_p,)),
    "wasm_importtype_name": (POINTER(Bytes), (c_void_p,)),
    "wasm_exporttype_name": (POINTER(Bytes), (c_void_p,)),
    "wasm_exporttype_type": (c_void_p, (c_void_p,)),
    "wasm_externtype_kind": (ctypes.c_uint8, (c_void_p,)),
    "wasmtime_module_new": (_ERROR, (c_void_p, c_char_p, c_size_t, c_void_p)),
    "wasmtime_module_imports": (None, (c_void_p, c_void_p)),
    "wasmtime_module_exports": (None, (c_void_p, c_void_p)),
    "wasmtime_module_serialize": (_ERROR, (c_void_p, c_void_p)),
    "wasmtime_module_deserialize_file": (_ERROR, (c_void_p, c_char_p, c_void_p)),
    "wasmtime_linker_instantiate": (_ERROR, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    "wasmtime_instance_export_get": (c_bool, (c_void_p, c_void_p, c_char_p, c_size_t, c_void_p)),
    "wasmtime_func_call": (_ERROR, (*[c_void_p] * 3, c_size_t, c_void_p, c_size_t, c_void_p)),
    "wasmtime_component_linker_new": (c_void_p, (c_void_p,)),
    "wasmtime_component_linker_add_wasip2": (_ERROR, (c_void_p,)),
    "wasmtime_component_new": (_ERROR, (c_void_p, c_char_p, c_size_t, c_void_p)),
    "wasmtime_component_serialize": (_ERROR, (c_void_p, c_void_p)),
    "wasmtime_component_deserialize_file": (_ERROR, (c_void_p, c_char_p, c_void_p)),
    "wasmtime_component_get_export_index": (c_void_p, (c_void_p, c_void_p, c_char_p, c_size_t)),
    "wasmtime_component_linker_instantiate": (_ERROR, (c_void_p, c_void_p, c_void_p, c_void_p)),
    "wasmtime_component_instance_get_func": (c_bool, (c_void_p, c_void_p, c_void_p, c_void_p)),
    "wasmtime_component_func_call": (_ERROR, (*[c_void_p] * 3, c_size_t, c_void_p, c_size_t)),
}


class Value(Structure):
    """wasmtime_component_val_t of a result without a payload, and a buffer for whatever else is passed by address."""

    # The union begins at its own alignment.
    _fields_ = (
        ("kind", ctypes.c_uint8),
        ("_padding", ctypes.c_uint8 * 7),
        ("is_ok", c_bool),
        ("_rest", ctypes.c_uint64 * 8),
    )


class WasmtimeError(Exception):
    """What the library says went wrong; `exit_code` is there where a module has ended itself."""

    def __init__(self, text: str, exit_code: int | None = None) -> None:
        super().__init__(text)
        self.exit_code = exit_code

    def in_one_line(self) -> str:
        """Return it with its causes, of which each has a line of its own, shortened."""
        return "; ".join(line.strip() for line in str(self).splitlines() if line.strip())[:1000]


class LibWasmtime:
    """The library: its functions as attributes, and errors as exceptions."""

    def __init__(self) -> None:
        """Load it; raises ImportError where the package is not installed, or is another one."""
        package = _package_directory()
        self.version = _distribution(package)
        library = ctypes.CDLL(f"{package}/{sys.platform}-{os.uname().machine}/_libwasmtime.so")
        for name, (result, arguments) in _FUNCTIONS.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise ImportError(f"{self.version} has no {name}") from error
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        # Only a type checker needs it: what is there is set above.
        raise AttributeError(name)

    def check(self, error: int | None, trap: c_void_p | None = None) -> None:
        """Raise what a call returned as an error or a trap, if it did."""
        message, code = Bytes(), c_int()
        if error:
            self.wasmtime_error_message(error, byref(message))
            exited = self.wasmtime_error_exit_status(error, byref(code))
            raise WasmtimeError(message.text(), code.value if exited else None)
        if trap:
            self.wasm_trap_message(trap, byref(message))
            raise WasmtimeError(message.text())


def strings(values: Sequence[str]) -> Any:
    """Return an array of C strings."""
    return (c_char_p * len(values))(*(value.encode() for value in values))


def _package_directory() -> str:
    # Found, but not imported.
    found = importlib.util.find_spec("wasmtime")
    if found is None or not found.submodule_search_locations:
        raise ImportError("no module named 'wasmtime': install sandboxd[wasm]")
    return next(iter(found.submodule_search_locations))


def _distribution(package: str) -> str:
    """Return the package's name and version, as its installer has it; what reads it properly weighs 2 MiB."""
    suffix = ".dist-info"
    beside = os.listdir(os.path.dirname(package))
    found = [name for name in beside if name.startswith("wasmtime-") and name.endswith(suffix)]
    return found[0].removesuffix(suffix) if found else "wasmtime"
