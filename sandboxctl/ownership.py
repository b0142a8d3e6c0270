"""Whose a pod is: what an engine believes to run must not be ended behind its back without being meant.

The pods of `sandboxctl run` are our own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from common.errors import FailedPrecondition, Unavailable
from sandboxctl.daemons import Daemon
from sandboxctl.pods import Container, Pod
from sandboxers.config import EngineKind
from sandboxers.embedded import is_embedded

if TYPE_CHECKING:
    from sandboxers.engine import EngineList

_ENGINE_TIMEOUT_S = 5.0


async def list_owned(daemon: Daemon) -> EngineList:
    """Return what the engines know that may use a daemon.

    :raise Unavailable: the one that is configured cannot be asked.
    """
    from sandboxers.engine import list_embedded, list_engines  # late: as below

    if daemon.is_private:
        return list_embedded()
    return await list_engines(daemon.config.engine.asked_at, _ENGINE_TIMEOUT_S)


async def require_unowned(things: Iterable[Pod | Container], action: str) -> None:
    """Ask the engine of each pod or container whether it knows it; without an engine to ask nobody does.

    :param action: what is about to be done, for the error.
    :raise FailedPrecondition: an engine knows one of them, or cannot be asked.
    """
    from sandboxers.engine import list_engine  # late: with --force nobody is asked

    lists: dict[str, EngineList] = {}
    for thing in things:
        pod = thing if isinstance(thing, Pod) else thing.pod
        kind = "pod" if isinstance(thing, Pod) else "container"
        engine_config = pod.daemon.config.engine
        if engine_config.kind is EngineKind.ISULAD:
            raise FailedPrecondition(
                f"{kind} {thing.id} may belong to iSulad, which cannot be asked: {action} it there (crictl, kubectl),"
                " or use --force"
            )
        address = engine_config.asked_at
        if not address or is_embedded(pod.id):
            continue
        if address not in lists:
            try:
                lists[address] = await list_engine(address, _ENGINE_TIMEOUT_S)
            except Unavailable as error:
                raise FailedPrecondition(
                    f"nobody tells whose {kind} {thing.id} is: {error}; use --force to {action} it all the same"
                ) from None
        engine = lists[address]
        if thing.id in (engine.sandboxes if isinstance(thing, Pod) else engine.tasks):
            raise FailedPrecondition(
                f"{kind} {thing.id} belongs to the engine at {address}, which may start it anew or be confused:"
                f" {action} it there (crictl, kubectl), or use --force"
            )
