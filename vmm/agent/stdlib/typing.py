"""Names for annotations, which nobody evaluates here, and NamedTuple."""

from collections import namedtuple

TYPE_CHECKING = False


class _Special:
    """Any of the names that only annotations use, with or without brackets."""

    __slots__ = ()

    def __getitem__(self, parameters):
        return self

    def __or__(self, other):
        return self

    __ror__ = __or__


Any = Callable = ClassVar = Final = NoReturn = Optional = Self = Union = _Special()


class Generic:
    """A base that says nothing at run time."""

    __slots__ = ()

    def __class_getitem__(cls, parameters):
        return cls


class Protocol(Generic):
    """The same."""

    __slots__ = ()


def TypeVar(name, *constraints, bound=None):
    """Return something that can stand in brackets."""
    return Any


def cast(kind, value):
    """Return the value."""
    return value


def get_origin(hint):
    """There are no hints here to ask about."""
    raise NotImplementedError("hints are not kept in the guest")


get_args = get_type_hints = get_origin


class _NamedTupleMeta(type):
    def __new__(meta, name, bases, namespace):
        fields = tuple(namespace.get("__annotations__", ()))
        defaults = [namespace.pop(field) for field in fields if field in namespace]
        return namedtuple(name, fields, defaults=defaults, namespace=namespace)


def NamedTuple(name, fields):
    """Only the form with a class is there."""
    raise NotImplementedError("class X(NamedTuple)")


_entry = type.__new__(_NamedTupleMeta, "NamedTuple", (), {})
NamedTuple.__mro_entries__ = lambda bases: (_entry,)
