"""What generated modules ask before they set what only the Python implementation needs."""

_USE_C_DESCRIPTORS = True
