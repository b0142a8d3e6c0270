"""What a daemon lets others see of it, beside its log: starts on record, figures for Prometheus, traces.

Each is told by `common.operations` what has been done. What is off is not loaded.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from common.errors import FailedPrecondition
from common.log import get_logger
from common.operations import ignore_operations, observe_operations
from common.ttrpc import CallObserver
from sandboxers.garbage import Garbage
from sandboxers.generation import next_generation
from sandboxers.isolation import DaemonConfig
from sandboxers.registry import SandboxRegistry
from sandboxers.start_log import StartLog
from sandboxers.tracing import is_wanted

if TYPE_CHECKING:
    from sandboxers.metrics.endpoint import Endpoint
    from sandboxers.metrics.figures import Figures

log = get_logger()


class Observability:
    """All of it, for one daemon; observes from the moment it is made."""

    def __init__(self, config: DaemonConfig, kind: str) -> None:
        """:param kind: the isolation type."""
        self.generation = next_generation(config.state_dir)
        self._address = config.metrics.address
        self._starts = StartLog(config.state_dir)
        observe_operations(self._starts.note)
        self._figures: Figures | None = None
        self._endpoint: Endpoint | None = None
        if self._address:
            from sandboxers.metrics.figures import Figures

            self._figures = Figures(kind, self.generation)
            self._figures.watch()
        if is_wanted(os.environ):
            from sandboxers.tracing.spans import export_spans

            export_spans(kind)

    @property
    def call_observer(self) -> CallObserver | None:
        """Who is to be told of the calls of a server that is not of `common.ttrpc`."""
        return self._figures.note_call if self._figures is not None else None

    async def listen(self, registry: SandboxRegistry, garbage: Garbage) -> None:
        """Answer Prometheus, if the configuration asks for it. Pods are served whether that is possible or not."""
        if self._figures is None:
            return
        from sandboxers.metrics.endpoint import Endpoint

        figures = self._figures
        endpoint = Endpoint(lambda: figures.text(registry, garbage))
        try:
            await endpoint.listen(self._address)
        except FailedPrecondition as error:
            log.error("metrics.not_served", error=error)
            return
        self._endpoint = endpoint
        log.info("metrics.served", address=self._address)

    def close(self) -> None:
        """Listen no more and write nothing more down."""
        if self._endpoint is not None:
            self._endpoint.close()
        ignore_operations(self._starts.note)
        self._starts.close()
