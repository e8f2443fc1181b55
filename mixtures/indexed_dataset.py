"""Megatron's indexed dataset: a .bin of token ids, end to end, and an .idx that says where.

Layout of the .idx (Megatron-LM, megatron/core/datasets/indexed_dataset.py), little endian: the nine
bytes "MMIDIDX" and two zeros, version 1 as uint64, the type's code as a byte, the numbers of
sequences and of document borders as uint64, then lengths (int32, tokens), pointers (int64, bytes
into the .bin) and document borders (int64). Here every sequence is a document.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<QBQQ")
_VERSION = 1
_CODES = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}  # Megatron's DType; the two we write


@dataclass(frozen=True)
class Index:
    """What an .idx says."""

    dtype: np.dtype
    lengths: np.ndarray  # int32, tokens of each sequence
    pointers: np.ndarray  # int64, byte offset of each sequence
    borders: np.ndarray  # int64, first sequence of each document and the end


def write_index(path: Path, dtype: np.dtype, lengths: np.ndarray) -> None:
    """Writes the .idx of documents that follow each other in the .bin.

    Args:
        path: file to write.
        dtype: uint16 or int32.
        lengths: tokens of each document, end-of-document token included.
    """
    pointers = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=pointers[1:], dtype=np.int64)
    with path.open("wb") as stream:
        stream.write(_MAGIC)
        stream.write(_HEADER.pack(_VERSION, _CODES[dtype], len(lengths), len(lengths) + 1))
        stream.write(lengths.astype("<i4").tobytes())
        stream.write((pointers * dtype.itemsize).astype("<i8").tobytes())
        stream.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


def read_index(path: Path) -> Index:
    """Reads an .idx.

    Raises:
        ValueError: the file is none, or of another version or type.
    """
    data = path.read_bytes()
    start = len(_MAGIC) + _HEADER.size
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        raise ValueError(f"{path} is no Megatron index: it begins with {data[:9]!r}")
    version, code, num_sequences, num_borders = _HEADER.unpack_from(data, len(_MAGIC))
    types = {value: dtype for dtype, value in _CODES.items()}
    if version != _VERSION or code not in types:
        raise ValueError(
            f"{path}: version {version} and type {code}; wanted version {_VERSION} and a type of: "
            f"{', '.join(map(str, types))}"
        )
    lengths = np.frombuffer(data, "<i4", num_sequences, start)
    start += lengths.nbytes
    pointers = np.frombuffer(data, "<i8", num_sequences, start)
    start += pointers.nbytes
    return Index(types[code], lengths, pointers, np.frombuffer(data, "<i8", num_borders, start))
