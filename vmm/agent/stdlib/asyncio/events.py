"""The running loop, as `_asyncio` keeps it."""


def get_event_loop_policy() -> object:
    """There are no policies: a loop is asked for while it runs."""
    raise RuntimeError("no running event loop")


# Below what `_asyncio` looks for while it is being loaded.
from _asyncio import _set_running_loop, get_running_loop  # noqa: E402

__all__ = ["_set_running_loop", "get_event_loop_policy", "get_running_loop"]
