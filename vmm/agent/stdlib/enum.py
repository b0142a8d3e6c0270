"""Enum, IntEnum, StrEnum. Left out: flags, auto, aliases, the functional form, members with methods of their own."""


class EnumType(type):
    """Makes the members of an enumeration when its class is made."""

    def __new__(meta, name, bases, namespace):
        members = {}
        kept = {}
        for key, value in namespace.items():
            if key.startswith("_") or hasattr(value, "__get__"):
                kept[key] = value
            else:
                members[key] = value
        cls = type.__new__(meta, name, bases, kept)
        cls._member_map_ = {}
        cls._value2member_map_ = {}
        make = cls._make_
        for key, value in members.items():
            member = make(value)
            member._name_ = member.name = key
            member._value_ = member.value = value
            cls._member_map_[key] = cls._value2member_map_[value] = member
            type.__setattr__(cls, key, member)
        return cls

    def __call__(cls, value):
        try:
            return cls._value2member_map_[value]
        except (KeyError, TypeError):
            if isinstance(value, cls):
                return value
            raise ValueError(f"{value!r} is not a valid {cls.__qualname__}") from None

    def __getitem__(cls, name):
        return cls._member_map_[name]

    def __iter__(cls):
        return iter(cls._member_map_.values())

    def __len__(cls):
        return len(cls._member_map_)

    def __contains__(cls, value):
        return isinstance(value, cls)


class Enum(metaclass=EnumType):
    """A set of named values."""

    @classmethod
    def _make_(cls, value):
        return object.__new__(cls)

    def __repr__(self):
        return f"<{type(self).__name__}.{self._name_}: {self._value_!r}>"

    def __str__(self):
        return f"{type(self).__name__}.{self._name_}"

    def __hash__(self):
        return hash(self._name_)


class IntEnum(int, Enum):
    """Named integers."""

    @classmethod
    def _make_(cls, value):
        return int.__new__(cls, value)

    __str__ = int.__repr__
    __format__ = int.__format__
    __hash__ = int.__hash__


class StrEnum(str, Enum):
    """Named texts."""

    @classmethod
    def _make_(cls, value):
        return str.__new__(cls, value)

    __str__ = str.__str__
    __format__ = str.__format__
    __hash__ = str.__hash__
