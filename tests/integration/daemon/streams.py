"""The engine's ends of FIFOs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

READ_SIZE = 65536


class Output:
    """Everything that a FIFO delivers, until its last writer is gone."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._fd = -1
        self._path = Path()
        self._changed = asyncio.Event()
        self.ended = False

    def open(self, path: Path) -> None:
        """Begin to read, whether there is a writer yet or not."""
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.resume()

    def open_again(self) -> None:
        """Read on if it has ended, as an engine does with a process that is to be made after all."""
        if self.ended:
            self.ended = False
            self.open(self._path)

    def pause(self) -> None:
        """Stop reading: the writer will have to wait."""
        asyncio.get_running_loop().remove_reader(self._fd)

    def resume(self) -> None:
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    async def until(self, text: bytes, timeout_s: float = 20) -> bytes:
        """All output so far, once it contains `text`."""
        try:
            async with asyncio.timeout(timeout_s):
                while text not in self.data:
                    if self.ended:
                        raise AssertionError(
                            f"the output ended without {text!r}: {bytes(self.data[-2000:])!r}"
                        )
                    await self._next()
        except TimeoutError:
            raise AssertionError(f"no {text!r} within {timeout_s} s: {bytes(self.data[-2000:])!r}") from None
        return bytes(self.data)

    async def end(self, timeout_s: float = 20) -> bytes:
        """All output, once it has ended."""
        if self._fd < 0 and not self.ended:
            return b""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ended:
                    await self._next()
        except TimeoutError:
            raise AssertionError(f"the output did not end within {timeout_s} s") from None
        return bytes(self.data)

    def close(self) -> None:
        """Vanish as a reader. Idempotent."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def _next(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return
        self.data += data
        if not data:
            self.ended = True
            self.close()
        self._changed.set()


def open_writer(path: str) -> int:
    """The writing end of a FIFO that has a reader."""
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
