"""Signals as operators and images name them: "SIGTERM", "term", "15", "SIGRTMIN+3" (signal(7))."""

from __future__ import annotations

import re
import signal

_REAL_TIME = re.compile(r"RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?")


def signal_number(name: str) -> int | None:
    """Return the number of a signal, or None where there is none of this name."""
    if name.isascii() and name.isdigit():
        number = int(name) if len(name) <= 2 else 0
    else:
        short = name.upper().removeprefix("SIG")
        if match := _REAL_TIME.fullmatch(short):
            base = signal.SIGRTMIN if match[1] == "MIN" else signal.SIGRTMAX
            number = base + int(f"{match[2]}{match[3]}" if match[2] else 0)
            return number if signal.SIGRTMIN <= number <= signal.SIGRTMAX else None
        known = getattr(signal, f"SIG{short}", None)
        number = int(known) if isinstance(known, signal.Signals) else 0
    return number if 0 < number <= signal.SIGRTMAX else None
