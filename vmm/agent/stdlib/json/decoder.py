"""The error that `_json` looks for here."""


class JSONDecodeError(ValueError):
    """The text is not JSON."""

    def __init__(self, message, text, position):
        ValueError.__init__(self, f"{message}: char {position}")
