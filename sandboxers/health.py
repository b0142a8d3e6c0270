"""grpc.health.v1.Health beside the Controller: serving from the first answer until the daemon is told to stop.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md. A daemon that recovers does not listen yet: probes
fail to connect, which means the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio

from proto.gen.grpc.health.v1 import health_pb2 as api
from proto.gen.grpc.health.v1 import health_pb2_grpc as api_grpc

_SERVICES: Final = frozenset({"", "containerd.services.sandbox.v1.Controller"})

Context = grpc.aio.ServicerContext[Any, Any]


class Health(api_grpc.HealthServicer):
    """Whether the daemon serves; all its services do so together."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()

    def close(self) -> None:
        """Tell everybody that the daemon stops."""
        self._stopping.set()

    async def Check(self, request: api.HealthCheckRequest, context: Context) -> api.HealthCheckResponse:
        """Tell the status of a service; NOT_FOUND for one that is not served here."""
        if request.service not in _SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r} here")
        return self._response()

    async def Watch(
        self, request: api.HealthCheckRequest, _: Context
    ) -> AsyncIterator[api.HealthCheckResponse]:
        """Tell the status of a service now, and that the daemon stops."""
        known = request.service in _SERVICES
        yield self._response() if known else _response(api.HealthCheckResponse.SERVICE_UNKNOWN)
        if not self._stopping.is_set():
            await self._stopping.wait()
            if known:
                yield self._response()

    def _response(self) -> api.HealthCheckResponse:
        stopping = self._stopping.is_set()
        return _response(api.HealthCheckResponse.NOT_SERVING if stopping else api.HealthCheckResponse.SERVING)


def _response(status: api.HealthCheckResponse.ServingStatus) -> api.HealthCheckResponse:
    return api.HealthCheckResponse(status=status)
