"""partial, cache, wraps. Left out: everything else."""

from _functools import _lru_cache_wrapper, partial, reduce

WRAPPER_ASSIGNMENTS = ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__")

__all__ = ["cache", "partial", "reduce", "update_wrapper", "wraps"]


def update_wrapper(wrapper, wrapped):
    """Let a function look like another one."""
    for name in WRAPPER_ASSIGNMENTS:
        if hasattr(wrapped, name):
            setattr(wrapper, name, getattr(wrapped, name))
    wrapper.__dict__.update(wrapped.__dict__)
    wrapper.__wrapped__ = wrapped
    return wrapper


def wraps(wrapped):
    """Let the decorated function look like another one."""
    return partial(update_wrapper, wrapped=wrapped)


def cache(function):
    """Remember every result."""
    return update_wrapper(_lru_cache_wrapper(function, None, False, tuple), function)
