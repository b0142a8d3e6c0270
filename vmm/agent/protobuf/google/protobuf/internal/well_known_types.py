"""The bases of messages that have methods of their own; of these, only a time in ns is used."""

_SECOND_NS = 1_000_000_000


class Timestamp:
    """A time since the epoch."""

    __slots__ = ()

    def FromNanoseconds(self, nanoseconds):
        """Set it."""
        self.seconds, self.nanos = divmod(nanoseconds, _SECOND_NS)

    def ToNanoseconds(self):
        """Return it."""
        return self.seconds * _SECOND_NS + self.nanos


WKTBASES = {"google.protobuf.Timestamp": Timestamp}
