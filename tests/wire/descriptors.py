"""Descriptors as flat tables, so that two files compare entry by entry, in whatever order they declare things."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

Table = dict[str, object]


def table_of_module(file: FileDescriptor) -> Table:
    """What a generated module's descriptor says, with the JSON names that the runtime derived."""
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for extension in proto.extension:
        extension.json_name = file.extensions_by_name[extension.name].json_name
    for message in proto.message_type:
        _name_in_json(message, file.message_types_by_name[message.name])
    return table_of(proto)


def table_of(file: descriptor_pb2.FileDescriptorProto) -> Table:
    """Everything that a file declares but its own path, by names: "message_type Volume.field volume_id.number" is 2."""
    copy = descriptor_pb2.FileDescriptorProto()
    copy.CopyFrom(file)
    copy.ClearField("name")
    return dict(_entries(copy, ""))


def _name_in_json(message: descriptor_pb2.DescriptorProto, descriptor: Descriptor) -> None:
    for field in message.field:
        field.json_name = descriptor.fields_by_name[field.name].json_name
    for nested in message.nested_type:
        _name_in_json(nested, descriptor.nested_types_by_name[nested.name])


def _entries(message: Message, at: str) -> Iterator[tuple[str, object]]:
    for field, value in message.ListFields():
        name = f"[{field.full_name}]" if field.is_extension else field.name
        if field.is_repeated and field.message_type and "name" in field.message_type.fields_by_name:
            for element in value:
                yield from _entries(element, f"{at}{name} {element.name}.")
        elif field.is_repeated:
            yield at + name, [str(element) for element in value]
        elif field.message_type:
            yield from _entries(value, f"{at}{name}.")
        else:
            yield at + name, value
    unknown = UnknownFieldSet(message)
    for index in range(len(unknown)):
        yield f"{at}{unknown[index].field_number}", unknown[index].data
