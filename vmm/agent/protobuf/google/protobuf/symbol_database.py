"""Asked for by generated modules, which do nothing with it."""


def Default():
    """There is none."""
