"""Makes the classes of a generated module."""

from google._upb import _message
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message


def BuildMessageAndEnumDescriptors(file, module):
    """Nobody asks for these by name."""


def BuildTopDescriptorsAndMessages(file, module_name, module):
    """Put the enumerations and messages of a file into its module."""
    for name, descriptor in file.enum_types_by_name.items():
        module[name] = EnumTypeWrapper(descriptor)
        for value in descriptor.values:
            module[value.name] = value.number
    for name, descriptor in file.message_types_by_name.items():
        module[name] = _build(module_name, descriptor)


def _build(module_name, descriptor):
    members = {name: _build(module_name, nested) for name, nested in descriptor.nested_types_by_name.items()}
    members["DESCRIPTOR"] = descriptor
    members["__module__"] = module_name
    return _message.MessageMeta(descriptor.name, (Message,), members)
