"""Seccomp filters: made by libseccomp from a profile of the OCI runtime specification, and put in force.

Sources: OCI runtime-spec config-linux.md "Seccomp"; seccomp_rule_add(3); seccomp(2).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any, Final

from common.errors import InvalidArgument, Unimplemented
from common.linux import _libc

_LIBRARY = "libseccomp.so.2"

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_INSTRUCTION_BYTES = 8  # struct sock_filter
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_ERRNO = 0x00050000
_EPERM = 1
_ACTIONS: Final[Mapping[str, int]] = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_VALUE = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_OPERATORS: Final[Mapping[str, int]] = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install_filter(instructions: bytes) -> None:
    """Put a compiled filter in force for this thread and what it starts; no_new_privs must be set.

    :raise OSError: the kernel refuses it.
    """
    program = _Program(len(instructions) // _INSTRUCTION_BYTES, instructions)
    _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def require_library() -> None:
    """Raise Unimplemented unless libseccomp can be loaded."""
    _load()


def compile_filter(profile: Mapping[str, Any]) -> bytes:
    """Return the instructions for `linux.seccomp` of a specification.

    System calls that libseccomp does not know are left out, as OCI runtimes do. Takes some 10 ms and loads the
    library: not for a process that goes on.

    :raise InvalidArgument: the profile is malformed or asks for what is not offered.
    :raise Unimplemented: libseccomp is not installed.
    """
    library = _load()
    default = _action(profile.get("defaultAction"), profile.get("defaultErrnoRet"))
    context = library.seccomp_init(ctypes.c_uint32(default))
    if not context:
        raise InvalidArgument(f"seccomp: libseccomp refuses the default {profile.get('defaultAction')!r}")
    try:
        for name in profile.get("architectures") or []:
            _add_architecture(library, context, str(name))
        for entry in profile.get("syscalls") or []:
            action = _action(entry.get("action"), entry.get("errnoRet"))
            if action == default:
                continue
            for name in entry.get("names") or []:
                _add_rules(library, context, action, str(name), entry.get("args") or [])
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise Unimplemented(
            f"seccomp filters need {_LIBRARY} (Debian: libseccomp2), which cannot be loaded: {error}"
        ) from None
    library.seccomp_init.restype = ctypes.c_void_p
    for function in (library.seccomp_arch_add, library.seccomp_rule_add_array, library.seccomp_export_bpf):
        function.restype = ctypes.c_int
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    ]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library


def _action(name: object, value: object) -> int:
    if not isinstance(name, str) or name not in _ACTIONS:
        raise InvalidArgument(f"seccomp: the action {name!r} is not offered")
    if name not in _WITH_VALUE:
        return _ACTIONS[name]
    number = _EPERM if value is None else value
    if not isinstance(number, int) or not 0 <= number <= 0xFFFF:
        raise InvalidArgument(f"seccomp: {value!r} is not the value of an action")
    return _ACTIONS[name] | number


def _add_architecture(library: ctypes.CDLL, context: int, name: str) -> None:
    token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
    if not token:
        raise InvalidArgument(f"seccomp: the architecture {name!r} is not known")
    # Which is there already is an error (EEXIST): that of this machine.
    library.seccomp_arch_add(context, token)


def _add_rules(library: ctypes.CDLL, context: int, action: int, name: str, args: list[Any]) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == -1:
        return
    comparisons = [_comparison(name, arg) for arg in args]
    # A rule has one condition per argument; several for one argument are alternatives.
    indices = [comparison.arg for comparison in comparisons]
    alternatives = len(set(indices)) < len(indices)
    for rule in [[c] for c in comparisons] if alternatives else [comparisons]:
        array = (_Comparison * len(rule))(*rule)
        result = library.seccomp_rule_add_array(context, action, number, len(rule), array)
        if result < 0:
            raise InvalidArgument(f"seccomp: libseccomp refuses a rule for {name}: {os.strerror(-result)}")


def _comparison(name: str, arg: Mapping[str, Any]) -> _Comparison:
    operator, index = arg.get("op"), arg.get("index", 0)
    values = [arg.get(key, 0) for key in ("value", "valueTwo")]
    if not isinstance(operator, str) or operator not in _OPERATORS:
        raise InvalidArgument(f"seccomp: {name} is compared by {operator!r}, which is not known")
    if not all(isinstance(v, int) for v in (index, *values)) or index > 5:
        raise InvalidArgument(f"seccomp: a condition of {name} is malformed: {arg!r}")
    return _Comparison(index, _OPERATORS[operator], *(value & 0xFFFFFFFFFFFFFFFF for value in values))


def _exported(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("filter", os.MFD_CLOEXEC)
    with open(fd, "rb") as file:
        result = library.seccomp_export_bpf(context, fd)
        if result < 0:
            raise InvalidArgument(f"seccomp: libseccomp cannot make a filter: {os.strerror(-result)}")
        file.seek(0)
        instructions = file.read()
    if len(instructions) > _MAX_INSTRUCTIONS * _INSTRUCTION_BYTES:
        raise InvalidArgument(f"seccomp: the filter has more than {_MAX_INSTRUCTIONS} instructions")
    return instructions
