"""Task calls that change something, as operations: seen while they run, and told of when they have ended."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Protocol, TypeVar

from common.operations import Action, operation
from common.ttrpc import CallContext

_LONGEST_ID = 100


class _OfPod(Protocol):
    sandbox_id: str


ServiceT = TypeVar("ServiceT", bound=_OfPod)
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
Handler = Callable[[ServiceT, RequestT, CallContext], Coroutine[Any, Any, ResponseT]]


def as_operation(
    action: Action, of_exec: Action | None = None
) -> Callable[[Handler[ServiceT, RequestT, ResponseT]], Handler[ServiceT, RequestT, ResponseT]]:
    """Let a handler of a pod's Task service be an operation; another one where its request names an exec."""

    def decorate(handler: Handler[ServiceT, RequestT, ResponseT]) -> Handler[ServiceT, RequestT, ResponseT]:
        @wraps(handler)
        async def call(self: ServiceT, request: RequestT, context: CallContext) -> ResponseT:
            named: Any = request
            exec_id = getattr(named, "exec_id", "")
            with operation(
                of_exec if exec_id and of_exec else action,
                self.sandbox_id,
                # Not checked yet: whatever the caller has sent.
                named.id[:_LONGEST_ID],
                exec_id[:_LONGEST_ID],
                metadata=context.metadata,
            ):
                return await handler(self, request, context)

        return call

    return decorate
