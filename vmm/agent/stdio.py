"""A process's standard streams in a guest: pipes that flow to and from connections of the host."""

from __future__ import annotations

import asyncio
import os

from common.descriptors.store import DescriptorStore
from common.task.stdio import Stdio, StdioSpec
from vmm.agent.streams import InputStream, OutputStream, Streams
from vmm.protocol import stream_of


class StreamStdio(Stdio):
    """The streams of one process, named `stream:ID` (`vmm.protocol.stream_uri`)."""

    __slots__ = ("_input", "_outputs", "_streams")

    def __init__(
        self,
        streams: Streams,
        spec: StdioSpec,
        owner: tuple[int, int],
        directory: str,
        store: DescriptorStore,
        name: str,
    ) -> None:
        """Claim what the host has opened; the other arguments are those of `Stdio`."""
        self._streams = streams
        self._input: InputStream | None = None
        self._outputs: list[OutputStream] = []
        super().__init__(spec, owner, directory, store, name)

    def _open_input(self, path: str, owner: tuple[int, int]) -> int:
        reader, self._input = self._streams.claim_input(stream_of(path))
        os.fchown(reader, *owner)
        return reader

    def _open_output(self, path: str, owner: tuple[int, int]) -> int:
        writer, stream = self._streams.claim_output(stream_of(path))
        self._outputs.append(stream)
        os.fchown(writer, *owner)
        return writer

    def close_stdin(self) -> None:
        """Let the process read end-of-file after what has come until now."""
        if self._input is not None:
            self._input.close()
            self._input = None
        super().close_stdin()

    @property
    def is_behind(self) -> bool:
        """Whether output is in a pipe or a terminal still."""
        return self.terminal is not None or any(stream.is_behind for stream in self._outputs)

    async def pass_on(self, timeout_s: float) -> None:
        """Bring it into the connections; a host that does not read is waited for no longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                if self.terminal is not None:
                    await self.terminal.drained()
                for stream in self._outputs:
                    await stream.pass_on()
        except TimeoutError:
            return
