"""The exceptions that `_asyncio` raises (CPython, Modules/_asynciomodule.c, module_init)."""


class CancelledError(BaseException):
    """The future or task was cancelled."""


class InvalidStateError(Exception):
    """The operation is not allowed in this state."""
