"""WasmEdge, by its C library: core modules with WASI preview 1, compiled ahead of their time by its LLVM.

Source: wasmedge/wasmedge.h, of which what is used here is the same in 0.14 and in 0.17.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_uint32, c_void_p
from typing import Any, Final

from common.errors import InvalidArgument
from sandboxers.wasm.engines import NOT_RUN_EXIT_CODE, TRAP_EXIT_CODE, Invocation
from sandboxers.wasm.engines.imports import refuse_imports
from sandboxers.wasm.modules import Kind

LIBRARY: Final = "libwasmedge.so.0"
PAGE_BYTES: Final = 64 << 10
_START: Final = "_start"
_WASI: Final = 0  # WasmEdge_HostRegistration_Wasi
_FUNCTION: Final = 0  # WasmEdge_ExternalType_Function
_NATIVE: Final = 0  # WasmEdge_CompilerOutputFormat_Native
_SUCCESS: Final = 0
_TERMINATED: Final = 1
_CODE_BITS: Final = 0xFFFFFF
_MAX_PAGES: Final = 65536
# All linear memory that a module can have, and what the engine needs beside.
_MAX_DATA_BYTES: Final = _MAX_PAGES * PAGE_BYTES + (256 << 20)


class _String(Structure):
    _fields_ = (("length", c_uint32), ("buffer", c_char_p))

    def __str__(self) -> str:
        return ctypes.string_at(self.buffer, self.length).decode(errors="replace") if self.length else ""


class _Bytes(Structure):
    _fields_ = (("length", c_uint32), ("buffer", c_char_p))


class _Result(Structure):
    _fields_ = (("code", c_uint32),)

    @property
    def number(self) -> int:
        return int(self.code) & _CODE_BITS


_STRINGS = POINTER(c_char_p)
_OBJECTS = POINTER(c_void_p)

# By name without the prefix WasmEdge_: what it returns and takes. All contexts are pointers.
_FUNCTIONS: Final[Mapping[str, tuple[Any, tuple[Any, ...]]]] = {
    "VersionGet": (c_char_p, ()),
    "LogOff": (None, ()),
    "ResultGetMessage": (c_char_p, (_Result,)),
    "ConfigureCreate": (c_void_p, ()),
    "ConfigureAddHostRegistration": (None, (c_void_p, c_int)),
    "ConfigureSetMaxMemoryPage": (None, (c_void_p, c_uint32)),
    "ConfigureCompilerSetOutputFormat": (None, (c_void_p, c_int)),
    "ConfigureCompilerSetGenericBinary": (None, (c_void_p, c_bool)),
    "CompilerCreate": (c_void_p, (c_void_p,)),
    "CompilerCompileFromBytes": (_Result, (c_void_p, _Bytes, c_char_p)),
    "LoaderCreate": (c_void_p, (c_void_p,)),
    "LoaderParseFromBytes": (_Result, (c_void_p, _OBJECTS, _Bytes)),
    "LoaderParseFromFile": (_Result, (c_void_p, _OBJECTS, c_char_p)),
    "ValidatorCreate": (c_void_p, (c_void_p,)),
    "ValidatorValidate": (_Result, (c_void_p, c_void_p)),
    "ASTModuleListImportsLength": (c_uint32, (c_void_p,)),
    "ASTModuleListImports": (c_uint32, (c_void_p, _OBJECTS, c_uint32)),
    "ImportTypeGetModuleName": (_String, (c_void_p,)),
    "ImportTypeGetExternalName": (_String, (c_void_p,)),
    "ImportTypeGetExternalType": (c_int, (c_void_p,)),
    "ASTModuleListExportsLength": (c_uint32, (c_void_p,)),
    "ASTModuleListExports": (c_uint32, (c_void_p, _OBJECTS, c_uint32)),
    "ExportTypeGetExternalName": (_String, (c_void_p,)),
    "ExportTypeGetExternalType": (c_int, (c_void_p,)),
    "VMCreate": (c_void_p, (c_void_p, c_void_p)),
    "VMGetImportModuleContext": (c_void_p, (c_void_p, c_int)),
    "VMLoadWasmFromASTModule": (_Result, (c_void_p, c_void_p)),
    "VMValidate": (_Result, (c_void_p,)),
    "VMInstantiate": (_Result, (c_void_p,)),
    "VMExecute": (_Result, (c_void_p, _String, c_void_p, c_uint32, c_void_p, c_uint32)),
    "ModuleInstanceGetModuleName": (_String, (c_void_p,)),
    "ModuleInstanceFindFunction": (c_void_p, (c_void_p, _String)),
    "ModuleInstanceInitWASI": (
        None,
        (c_void_p, _STRINGS, c_uint32, _STRINGS, c_uint32, _STRINGS, c_uint32),
    ),
    "ModuleInstanceWASIGetExitCode": (c_uint32, (c_void_p,)),
}


class _Library:
    """The C library: its functions by their names without the prefix."""

    def __init__(self) -> None:
        library = ctypes.CDLL(LIBRARY)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, f"WasmEdge_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        # Only a type checker needs it: what is there is set above.
        raise AttributeError(name)

    def message(self, result: _Result) -> str:
        """What a result that is no success says."""
        return str(self.ResultGetMessage(result).decode(errors="replace"))

    def machine(self, configuration: int) -> tuple[int, int]:
        """A new machine, and its module of WASI."""
        machine = self.VMCreate(configuration, None)
        return machine, self.VMGetImportModuleContext(machine, _WASI)

    def configure(self) -> int:
        """A new configuration with WASI."""
        configuration = self.ConfigureCreate()
        self.ConfigureAddHostRegistration(configuration, _WASI)
        return int(configuration)


class WasmEdge:
    """The engine (`Engine`). What it makes lives as long as the process, which runs one module or compiles one."""

    def __init__(self) -> None:
        try:
            self._library = _Library()
        except (OSError, AttributeError) as error:
            raise ImportError(f"{error}: it is in Debian's package libwasmedge0, since Debian 13") from error
        # Its log goes to standard output, which is the module's.
        self._library.LogOff()
        self._configuration = self._library.configure()

    @property
    def key(self) -> str:
        return f"wasmedge-{self._library.VersionGet().decode()}-{os.uname().machine}"

    def draft(self, module: bytes, kind: Kind) -> bytes:
        """It interprets what is not compiled: its LLVM takes 80 ms and more, which nobody should wait for."""
        _require_core(kind)
        library, parsed = self._library, c_void_p()
        loader = library.LoaderCreate(self._configuration)
        result = library.LoaderParseFromBytes(loader, ctypes.byref(parsed), _Bytes(len(module), module))
        if result.number != _SUCCESS:
            raise InvalidArgument(f"not a valid WebAssembly module: {library.message(result)}")
        WasmEdgeProgram(library, self._configuration, parsed).check()
        return module

    def compile(self, module: bytes, kind: Kind) -> bytes:
        _require_core(kind)
        library = self._library
        library.ConfigureCompilerSetOutputFormat(self._configuration, _NATIVE)
        # The code is kept; the next boot may be on another processor of this kind.
        library.ConfigureCompilerSetGenericBinary(self._configuration, True)
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/module.so"
            compiler = library.CompilerCreate(self._configuration)
            result = library.CompilerCompileFromBytes(compiler, _Bytes(len(module), module), path.encode())
            if result.number != _SUCCESS:
                raise InvalidArgument(f"not a valid WebAssembly module: {library.message(result)}")
            with open(path, "rb") as file:
                return file.read()

    def load(self, path: str, kind: Kind) -> WasmEdgeProgram:
        _require_core(kind)
        module = c_void_p()
        loader = self._library.LoaderCreate(self._configuration)
        result = self._library.LoaderParseFromFile(loader, ctypes.byref(module), path.encode())
        if result.number != _SUCCESS:
            raise ValueError(f"{path} is not code of this engine: {self._library.message(result)}")
        # A draft's calls are kept in memory that nothing else bounds: without end they would take the machine's.
        resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA_BYTES, _MAX_DATA_BYTES))
        return WasmEdgeProgram(self._library, self._configuration, module)

    def rehearse(self) -> None:
        self._library.machine(self._configuration)


class WasmEdgeProgram:
    """A core module (`Program`)."""

    def __init__(self, library: _Library, configuration: int, module: c_void_p) -> None:
        self._library = library
        self._configuration = configuration
        self._module = module

    def check(self) -> None:
        """Raise InvalidArgument unless it can be run."""
        library = self._library
        validator = library.ValidatorCreate(self._configuration)
        result = library.ValidatorValidate(validator, self._module)
        if result.number != _SUCCESS:
            raise InvalidArgument(f"not a valid WebAssembly module: {library.message(result)}")
        refuse_imports(self._unknown_imports())
        exports = self._list("ASTModuleListExports")
        if not any(
            library.ExportTypeGetExternalType(export) == _FUNCTION
            and str(library.ExportTypeGetExternalName(export)) == _START
            for export in exports
        ):
            raise InvalidArgument("it exports no function _start: it is a library, not a command")

    def run(self, invocation: Invocation) -> int:
        library = self._library
        if invocation.memory_limit_bytes > 0:
            pages = min(invocation.memory_limit_bytes // PAGE_BYTES, _MAX_PAGES)
            library.ConfigureSetMaxMemoryPage(self._configuration, pages)
        machine, wasi = library.machine(self._configuration)
        args, env = list(invocation.args), [f"{name}={value}" for name, value in invocation.env.items()]
        library.ModuleInstanceInitWASI(
            wasi, _strings(args), len(args), _strings(env), len(env), _strings(["/:/"]), 1
        )
        for result in (
            library.VMLoadWasmFromASTModule(machine, self._module),
            library.VMValidate(machine),
            library.VMInstantiate(machine),
        ):
            if result.number != _SUCCESS:
                return self._failed(result, NOT_RUN_EXIT_CODE)
        result = library.VMExecute(machine, _string(_START), None, 0, None, 0)
        if result.number not in (_SUCCESS, _TERMINATED):
            return self._failed(result, TRAP_EXIT_CODE)
        return int(library.ModuleInstanceWASIGetExitCode(wasi)) & 0xFF

    def _unknown_imports(self) -> list[str]:
        library = self._library
        _, wasi = library.machine(self._configuration)
        offered = str(library.ModuleInstanceGetModuleName(wasi))
        unknown = []
        for wanted in self._list("ASTModuleListImports"):
            module = str(library.ImportTypeGetModuleName(wanted))
            name = str(library.ImportTypeGetExternalName(wanted))
            if module != offered or not library.ModuleInstanceFindFunction(wasi, _string(name)):
                unknown.append(f"{module}.{name}")
        return unknown

    def _list(self, function: str) -> list[int]:
        count = getattr(self._library, f"{function}Length")(self._module)
        found = (c_void_p * count)()
        getattr(self._library, function)(self._module, found, count)
        return [entry for entry in found if entry]

    def _failed(self, result: _Result, code: int) -> int:
        print(f"wasm trap: {self._library.message(result)}", file=sys.stderr, flush=True)
        return code


def _require_core(kind: Kind) -> None:
    if kind is not Kind.CORE:
        raise InvalidArgument(
            "the engine wasmedge runs core modules only: components need the engine wasmtime"
        )


def _strings(values: Sequence[str]) -> Any:
    return (c_char_p * len(values))(*(value.encode() for value in values))


def _string(text: str) -> _String:
    data = text.encode()
    return _String(len(data), data)
