"""Terminals: their window size, and whose they are."""

from __future__ import annotations

import fcntl

# As termios has it, which a process whose root is elsewhere by now could not import any more.
_TIOCSCTTY = 0x540E


def set_window_size(fd: int, width: int, height: int) -> None:
    """Set the size in character cells of the terminal behind `fd` (either end of a pty).

    Raises OSError when `fd` is no terminal. Source: ioctl_tty(2), TIOCSWINSZ.
    """
    import termios  # late: few processes have a terminal

    try:
        termios.tcsetwinsize(fd, (height, width))
    except termios.error as error:
        raise OSError(*error.args) from error


def get_window_size(fd: int) -> tuple[int, int]:
    """Return (width, height) in character cells. Raises OSError when `fd` is no terminal."""
    import termios  # late, as above

    try:
        height, width = termios.tcgetwinsize(fd)
    except termios.error as error:
        raise OSError(*error.args) from error
    return width, height


def make_controlling(fd: int) -> None:
    """Make the terminal behind `fd` the controlling one of this process, which must lead a session.

    Raises OSError. Source: ioctl_tty(2), TIOCSCTTY.
    """
    fcntl.ioctl(fd, _TIOCSCTTY, 0)
