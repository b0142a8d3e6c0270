"""The pool that all generated modules add their files to."""

from google._upb import _message

_default = _message.default_pool


def Default():
    """Return it."""
    return _default
