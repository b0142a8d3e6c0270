"""Calls of C functions with integers, bytes and structures. Left out: callbacks, unions, other conventions."""

import _ctypes
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, Array, Structure, byref, get_errno, sizeof

__all__ = ["CDLL", "Array", "Structure", "byref", "get_errno", "sizeof"]


class c_int(_ctypes._SimpleCData):
    """int"""

    _type_ = "i"


class c_uint32(_ctypes._SimpleCData):
    """uint32_t"""

    _type_ = "I"


class c_long(_ctypes._SimpleCData):
    """long"""

    _type_ = "l"


class c_ulong(_ctypes._SimpleCData):
    """unsigned long"""

    _type_ = "L"


class c_char_p(_ctypes._SimpleCData):
    """char *"""

    _type_ = "z"


c_size_t = c_uint64 = c_ulong


class CDLL:
    """A library's functions as attributes; None: those of this program."""

    def __init__(self, name, use_errno=False):
        flags = FUNCFLAG_CDECL | (FUNCFLAG_USE_ERRNO if use_errno else 0)

        class function(_ctypes.CFuncPtr):
            _flags_ = flags
            _restype_ = c_int

        self._handle = _ctypes.dlopen(name, 0)
        self._function = function

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        function = self._function((name, self))
        setattr(self, name, function)
        return function
