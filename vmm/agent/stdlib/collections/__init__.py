"""The containers that are C, and namedtuple, which is not compiled for each type. Left out: everything else."""

import _collections_abc
import sys

from _collections import OrderedDict, _tuplegetter, defaultdict, deque

# collections.abc is loaded at the start of every interpreter, under another name.
sys.modules["collections.abc"] = _collections_abc
abc = _collections_abc

__all__ = ["OrderedDict", "abc", "defaultdict", "deque", "namedtuple"]

_MISSING = object()


def namedtuple(name, fields, *, defaults=(), namespace=None):
    """Return a class of tuples whose items have names; the last ones may have defaults.

    :param namespace: further members of the class.
    """
    fields = tuple(fields.replace(",", " ").split() if isinstance(fields, str) else fields)
    members = dict(namespace or {})
    members["_fields"] = members["__match_args__"] = fields
    members["_field_defaults"] = dict(zip(fields[len(fields) - len(defaults) :], defaults))
    members["__slots__"] = ()
    for index, field in enumerate(fields):
        members[field] = _tuplegetter(index, None)
    return type(name, (_NamedTuple,), members)


class _NamedTuple(tuple):
    __slots__ = ()

    def __new__(cls, *values, **named):
        fields = cls._fields
        if named or len(values) != len(fields):
            defaults = cls._field_defaults
            rest = [named.pop(name, defaults.get(name, _MISSING)) for name in fields[len(values) :]]
            if named or _MISSING in rest or len(values) > len(fields):
                raise TypeError(f"{cls.__name__} takes {', '.join(fields)}")
            values += tuple(rest)
        return tuple.__new__(cls, values)

    def __repr__(self):
        inside = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self))
        return f"{type(self).__name__}({inside})"

    def _asdict(self):
        return dict(zip(self._fields, self))

    def _replace(self, **changes):
        values = tuple(map(changes.pop, self._fields, self))
        if changes:
            raise ValueError(f"Got unexpected field names: {list(changes)!r}")
        return tuple.__new__(type(self), values)

    @classmethod
    def _make(cls, values):
        return cls(*values)
