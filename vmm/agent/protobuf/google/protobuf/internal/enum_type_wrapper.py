"""An enumeration as generated modules show it."""


class EnumTypeWrapper:
    """Names to numbers and back."""

    DESCRIPTOR = None

    def __init__(self, descriptor):
        self.DESCRIPTOR = descriptor

    def Name(self, number):
        """Return the name of a number."""
        return self.DESCRIPTOR.values_by_number[number].name

    def Value(self, name):
        """Return the number of a name."""
        return self.DESCRIPTOR.values_by_name[name].number
