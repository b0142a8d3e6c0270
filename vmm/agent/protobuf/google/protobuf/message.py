"""The classes that upb looks up by name (python/protobuf.c, PyUpb_ModuleState)."""


class Error(Exception):
    """Base of the errors."""


class DecodeError(Error):
    """The bytes are no such message."""


class EncodeError(Error):
    """The message cannot be encoded."""


class FrozenInstanceError(AttributeError):
    """The message cannot be changed."""


class Message:
    """Base of all messages."""

    __slots__ = ()
