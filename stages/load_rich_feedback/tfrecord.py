"""TFRecord files without TensorFlow: the framing and its checksums here, the messages by protobuf.

A record is its length (8 bytes, little-endian), the masked CRC-32C of that (4), the message, and the masked CRC-32C of that (4).
The message is a `tf.train.Example`: lists of bytes, floats or integers by name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import InputError, StageError

_MOST_BYTES = 1 << 26  # of one record; RichHF-18K's have 10 kB
_POINTER = b"version https://git-lfs.github.com/spec/"


def read_examples(path: Path) -> Iterator[Mapping[str, Sequence[Any]] | None]:
    """The features of each record of a file by name, in turn; None for a record that is no `Example`.

    Raises:
        InputError: the file is empty, no TFRecord, cut short, or has a wrong checksum.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(f"{path.name} is a pointer of Git LFS, not the file itself", where=str(path), fix="git lfs pull")
        file.seek(0)
        number = 0
        while head := file.read(12):
            where = f"record {number} at byte {file.tell() - len(head)}"
            if len(head) < 12:
                raise InputError(f"{path.name} is cut short in {where}", where=str(path), fix="copy or download it again")
            if not checked(head[:8], head[8:]):
                what = "is no TFRecord file" if not number else f"is damaged: the length of {where} has a wrong checksum"
                raise InputError(f"{path.name} {what}", where=str(path), expected="an uncompressed TFRecord file")
            (length,) = struct.unpack("<Q", head[:8])
            if length > _MOST_BYTES:
                raise InputError(
                    f"{where} of {path.name} has {length:,} bytes", where=str(path), expected=f"at most {_MOST_BYTES:,}"
                )
            data, checksum = file.read(length), file.read(4)
            if len(data) < length or len(checksum) < 4:
                raise InputError(f"{path.name} is cut short in {where}", where=str(path), fix="copy or download it again")
            if not checked(data, checksum):
                raise InputError(
                    f"{path.name} is damaged: {where} has a wrong checksum", where=str(path), fix="download it again"
                )
            yield _features(data)
            number += 1
        if not number:
            raise InputError(f"{path.name} has no records", where=str(path))


def checked(data: bytes, checksum: bytes) -> bool:
    """Whether bytes have a masked CRC-32C.

    Raises:
        StageError: what computes it is not installed.
    """
    try:
        import google_crc32c
    except ImportError:
        raise StageError("TFRecords need the package google-crc32c", fix="pip install 'irpipe[richhf]'") from None
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF) == checksum


def _features(data: bytes) -> Mapping[str, Sequence[Any]] | None:
    """The lists of an `Example` by name; None where the bytes are none."""
    from google.protobuf.message import DecodeError

    try:
        example = _example_class().FromString(data)
    except DecodeError:
        return None
    features = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = list(getattr(feature, kind).value) if kind else []
    return features


@cache
def _example_class() -> Any:
    """The message class of TensorFlow's example.proto and feature.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="irpipe/example.proto", package="irpipe.tensorflow", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str | None, int], oneof: str | None = None) -> Any:
        made = file.message_type.add(name=name)
        if oneof:
            made.oneof_decl.add(name=oneof)
        for label, number, kind, of, repeated in fields:
            added = made.field.add(
                name=label, number=number, type=kind, label=repeated, type_name=f".irpipe.tensorflow.{of}" if of else None
            )
            if oneof:
                added.oneof_index = 0
        return made

    many, one = field.LABEL_REPEATED, field.LABEL_OPTIONAL
    message("BytesList", ("value", 1, field.TYPE_BYTES, None, many))
    message("FloatList", ("value", 1, field.TYPE_FLOAT, None, many))
    message("Int64List", ("value", 1, field.TYPE_INT64, None, many))
    lists = (("bytes_list", 1, "BytesList"), ("float_list", 2, "FloatList"), ("int64_list", 3, "Int64List"))
    message("Feature", *((name, number, field.TYPE_MESSAGE, of, one) for name, number, of in lists), oneof="kind")
    features = message("Features", ("feature", 1, field.TYPE_MESSAGE, "Features.FeatureEntry", many))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=one)
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, label=one, type_name=".irpipe.tensorflow.Feature")
    message("Example", ("features", 1, field.TYPE_MESSAGE, "Features", one))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("irpipe.tensorflow.Example"))
