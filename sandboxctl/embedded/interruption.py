"""What a signal that asks this program to end does: it depends on how far the pod is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Interruption:
    """The handler of these signals, as a context: at first they cancel the task that enters it."""

    def __init__(self) -> None:
        self.signum = 0
        """The signal that has cancelled the task, or 0."""
        self.was_asked = False
        """Whether any of these signals has come, whatever was done about it."""
        self._react: Callable[[signal.Signals], None] = self._cancel
        self._kept: list[signal.Signals] = []
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Interruption:
        self._task = asyncio.current_task()
        for signum in _SIGNALS:
            # What our caller lets us ignore, such as nohup(1), stays so.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(signum, self._on_signal, signum)
        return self

    def __exit__(self, *_: object) -> None:
        for signum in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(signum)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Cancel the task there and then, where it does not let the event loop run for long."""
        caught = [signum for signum in _SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
        try:
            for signum in caught:
                signal.signal(signum, self._raise)
            yield
        finally:
            for signum in caught:
                asyncio.get_running_loop().add_signal_handler(signum, self._on_signal, signum)

    def postpone(self) -> None:
        """Keep signals, from now on, for whoever is told next: containers are being started."""
        self._react = self._kept.append

    def tell(self, react: Callable[[signal.Signals], None]) -> None:
        """Call `react` for every signal from now on, and for those that were kept."""
        self._react = react
        while self._kept:
            react(self._kept.pop(0))

    def ignore(self) -> None:
        """Let nothing interrupt what is left to be done."""
        self._react = lambda _: None

    def _on_signal(self, signum: signal.Signals) -> None:
        self.was_asked = True
        self._react(signum)

    def _raise(self, signum: int, _: object) -> None:
        if self.signum == 0:
            self.signum = signum
            self.ignore()
            raise asyncio.CancelledError

    def _cancel(self, signum: signal.Signals) -> None:
        self.signum = signum
        self.ignore()
        if self._task is not None:
            self._task.cancel()
