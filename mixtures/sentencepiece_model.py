"""The serialised form of a SentencePiece model: a protobuf message, edited field by field.

Two edits make a trained model reproducible and exact: the temporary paths of the rule files go out
of it, and the scores of a unigram model are rounded to a grid. The wire format is so small that a
protobuf library (another 5 MB) is not worth a dependency.
"""

import struct
from collections.abc import Iterator

SCORE_GRID = 64
"""Unigram scores become multiples of 1/64, at most 0.008 nats from what was trained."""

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_PIECES, _NORMALIZER, _DENORMALIZER = 1, 3, 5  # fields of ModelProto
_SCORE = 2  # of ModelProto.SentencePiece
_RULE_PATH = 6  # of NormalizerSpec


def finalize(model: bytes, round_scores: bool) -> bytes:
    """Returns the model without the paths of its rule files, its scores rounded if wanted.

    Raises:
        ValueError: the bytes are no model of the known form.
    """
    edited = []
    for field, wire, value in _fields(model):
        if field == _PIECES and round_scores:
            value = b"".join(_write(*_rounded(*part)) for part in _fields(value))
        elif field in (_NORMALIZER, _DENORMALIZER):
            value = b"".join(_write(*part) for part in _fields(value) if part[0] != _RULE_PATH)
        edited.append(_write(field, wire, value))
    return b"".join(edited)


def _rounded(field: int, wire: int, value: bytes) -> tuple[int, int, bytes]:
    if field == _SCORE:
        (score,) = struct.unpack("<f", value)
        value = struct.pack("<f", round(score * SCORE_GRID) / SCORE_GRID)
    return field, wire, value


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yields (field number, wire type, content) of a message, in order."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, end = _read_varint(message, position)
        elif wire == _BYTES:
            size, position = _read_varint(message, position)
            end = position + size
        elif wire == _FIXED32:
            end = position + 4
        else:
            raise ValueError(f"sentencepiece model: wire type {wire} at byte {position}")
        yield field, wire, message[position:end]
        position = end


def _write(field: int, wire: int, value: bytes) -> bytes:
    size = _varint(len(value)) if wire == _BYTES else b""
    return _varint(field << 3 | wire) + size + value


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
