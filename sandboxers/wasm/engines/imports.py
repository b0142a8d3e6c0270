"""What an engine says of imports that it does not offer."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import InvalidArgument

_MAX_NAMES = 20
_MAX_NAME_CHARACTERS = 100


def refuse_imports(unknown: Sequence[str]) -> None:
    """Raise InvalidArgument if there are any, and name some: a module may have thousands, of any length."""
    if not unknown:
        return
    named = ", ".join(_shown(name) for name in unknown[:_MAX_NAMES])
    beyond = len(unknown) - _MAX_NAMES
    more = f" and {beyond} more" if beyond > 0 else ""
    raise InvalidArgument(f"it imports what this engine does not offer: {named}{more}")


def _shown(name: str) -> str:
    shown = "".join(
        character if character.isprintable() else "?" for character in name[:_MAX_NAME_CHARACTERS]
    )
    return shown if len(name) <= _MAX_NAME_CHARACTERS else f"{shown}..."
