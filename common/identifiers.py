"""What a sandbox, container or exec may be called, and the directory names that follow from it."""

from __future__ import annotations

from common.errors import InvalidArgument

_LONGEST = 76
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_CHARACTERS = _LETTERS | frozenset("_.-")

_HASH_DIGITS = 32

UNIX_PATH_MAX_BYTES = 106
"""Longest socket path that every peer accepts: sun_path less its NUL, and a byte for those that count it (unix(7))."""


def check_identifier(kind: str, value: str) -> str:
    """Return `value` if it is a legal id.

    :raise InvalidArgument: it is empty, too long, or has a character that could leave a directory.
    """
    if value[:1] not in _LETTERS or len(value) > _LONGEST or not _CHARACTERS.issuperset(value):
        raise InvalidArgument(
            f"{kind} id {value[:100]!r} is not allowed: 1 to 76 letters, digits, '_', '.', '-', "
            "the first a letter or digit"
        )
    return value


def directory_name(parent: str, identifier: str, longest_member: str) -> str:
    """Return the directory name for an id in `parent`: the id, or a hash where a socket's path would be too long."""
    if len(f"{parent}/{identifier}/{longest_member}".encode()) <= UNIX_PATH_MAX_BYTES:
        return identifier
    import hashlib  # late: it loads a library, and short names need none

    return hashlib.sha256(identifier.encode()).hexdigest()[:_HASH_DIGITS]


def longest_parent_bytes(longest_member: str) -> int:
    """Return how long the path of a directory may be in which every id can have a directory, with such a member."""
    return UNIX_PATH_MAX_BYTES - len(f"/{'f' * _HASH_DIGITS}/{longest_member}")
