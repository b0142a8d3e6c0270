"""dataclass(frozen=, slots=), field, replace, fields. Left out: ordering, InitVar, keyword-only fields, inheritance.

The methods are shared by all data classes and look the fields up, rather than being compiled for each.
"""

MISSING = object()


class FrozenInstanceError(AttributeError):
    """A field of a frozen object was about to be changed."""


class Field:
    """A field: its name, and its default or what makes it."""

    __slots__ = ("default", "default_factory", "metadata", "name")

    def __init__(self, default, default_factory, metadata):
        self.name = ""
        self.default = default
        self.default_factory = default_factory
        self.metadata = metadata or {}


def field(*, default=MISSING, default_factory=MISSING, metadata=None):
    """Describe a field."""
    return Field(default, default_factory, metadata)


def fields(cls):
    """Return the fields of a data class."""
    return tuple(cls.__dataclass_fields__.values())


def replace(obj, **changes):
    """Return a copy with some fields changed."""
    for name in obj.__dataclass_fields__:
        changes.setdefault(name, getattr(obj, name))
    return type(obj)(**changes)


def dataclass(cls=None, *, frozen=False, slots=False):
    """Make a data class."""
    if cls is None:
        return lambda cls: dataclass(cls, frozen=frozen, slots=slots)
    found = {}
    namespace = dict(cls.__dict__)
    for name, hint in namespace.get("__annotations__", {}).items():
        if str(hint).startswith("ClassVar"):
            continue
        default = namespace.get(name, MISSING)
        entry = default if isinstance(default, Field) else Field(default, MISSING, None)
        entry.name = name
        found[name] = entry
        if slots or isinstance(default, Field):
            namespace.pop(name, None)
    namespace["__dataclass_fields__"] = found
    namespace["__match_args__"] = tuple(found)
    for name, method in _METHODS.items():
        namespace.setdefault(name, method)
    if frozen:
        namespace["__setattr__"] = namespace["__delattr__"] = _refuse
        namespace["__hash__"] = _hash
    else:
        namespace["__hash__"] = None
    if slots:
        namespace["__slots__"] = tuple(found)
    for name in ("__dict__", "__weakref__"):
        namespace.pop(name, None)
    made = type(cls)(cls.__name__, cls.__bases__, namespace)
    made.__qualname__ = cls.__qualname__
    return made


def _init(self, *values, **named):
    found = self.__dataclass_fields__
    if len(values) > len(found):
        raise TypeError(f"{type(self).__name__} takes {len(found)} arguments, not {len(values)}")
    put = object.__setattr__
    given = iter(values)
    for name, entry in found.items():
        value = next(given, MISSING)
        if value is MISSING:
            value = named.pop(name, MISSING)
            if value is MISSING:
                value = entry.default
                if value is MISSING:
                    if entry.default_factory is MISSING:
                        raise TypeError(f"{type(self).__name__} needs {name}")
                    value = entry.default_factory()
        put(self, name, value)
    if named:
        raise TypeError(f"{type(self).__name__} does not take {', '.join(named)}")
    after = getattr(self, "__post_init__", None)
    if after is not None:
        after()


def _values(self):
    return tuple([getattr(self, name) for name in self.__dataclass_fields__])


def _eq(self, other):
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self):
    return hash(_values(self))


def _repr(self):
    inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
    return f"{type(self).__qualname__}({inside})"


def _refuse(self, name, *value):
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


_METHODS = {"__init__": _init, "__eq__": _eq, "__repr__": _repr}
