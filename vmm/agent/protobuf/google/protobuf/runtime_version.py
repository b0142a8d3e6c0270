"""Generated modules check that they fit the library: tests and the pinned wheel see to that here."""


class Domain:
    """Who maintains the library."""

    PUBLIC = None


def ValidateProtobufRuntimeVersion(*version):
    """Accept it."""
