"""What a document is: a row of an Arrow record batch with an id, a text and typed columns.

The id is a 128-bit hash of (source name, path below the source's root, record key), written as 32
hexadecimal digits: fixed width, so it joins without decoding, and never of run order, so the same
record has the same id with any number of workers.
"""

import binascii
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

ORIGIN = pa.struct(
    [
        ("path", pa.string()),  # below the source's root
        # bytes into the file as it is stored, except in compressed JSON Lines: there into what it
        # decompresses to; null where a record has no place of its own (Parquet)
        ("offset", pa.int64()),
        ("length", pa.int64()),  # bytes, as offset; null where unknown
        ("content_hash", pa.string()),  # of the record, uncompressed: `content_hash`
    ]
)

# Columns with a fixed meaning and type. A reader may leave out the optional ones.
RESERVED = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("origin", ORIGIN),
        ("url", pa.string()),
        ("date", pa.string()),  # ISO 8601
        ("language", pa.string()),  # ISO 639
        ("licence", pa.string()),  # SPDX identifier
        ("parent_id", pa.string()),
    ]
)

# What a reader yields beside document columns; the engine consumes both.
KEY = "key"  # string, unique in a file: WARC-Record-ID, id column or ordinal
ERROR = "error"  # string, null for a good record, else "kind: detail"

# The raw bytes of a page and their media type, until a step makes text of them.
CONTENT = "content"
CONTENT_TYPE = "content_type"


class ContentDigest:
    """SHA-256 of bytes as they come, cut to 128 bits. Processors have instructions for it."""

    def __init__(self, data: bytes | memoryview = b"") -> None:
        self._digest = hashlib.sha256(data)
        self.update = self._digest.update

    def hexdigest(self) -> str:
        """Returns 32 hexadecimal digits."""
        return self._digest.hexdigest()[:32]


def content_hash(data: bytes | memoryview) -> str:
    """Returns the SHA-256 of a record's bytes, cut to 32 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:32]


def valid_text(text: str) -> str:
    r"""Returns text that UTF-8 can hold: lone surrogates, as in odd file names, become \udcxx."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def document_ids(source: str, paths: Sequence[str], keys: Sequence[str]) -> pa.StringArray:
    """Returns the ids of records: BLAKE2b-128 over the length-prefixed source, path and key."""
    start = hashlib.blake2b(_field(source), digest_size=16)
    ids = []
    for path, key in zip(paths, keys, strict=True):
        digest = start.copy()
        digest.update(_field(path))
        digest.update(_field(key))
        ids.append(digest.hexdigest())
    return pa.array(ids, pa.string())


def _field(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(8, "little") + data


def id_words(ids: pa.StringArray) -> np.ndarray:
    """Returns ids as (n, 2) uint64 words whose order is that of the strings."""
    if not len(ids):
        return np.zeros((0, 2), np.uint64)
    offsets = np.frombuffer(ids.buffers()[1], np.int32, len(ids) + 1, ids.offset * 4)
    data = memoryview(ids.buffers()[2])[offsets[0] : offsets[-1]]
    words = np.frombuffer(binascii.unhexlify(data), ">u8").reshape(-1, 2)
    return words.astype(np.uint64)


def id_bytes(words: np.ndarray) -> pa.FixedSizeBinaryArray:
    """Returns (n, 2) uint64 words as the 16 bytes that an id's digits stand for."""
    data = pa.py_buffer(words.astype(">u8").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(words), [None, data])


def id_strings(words: np.ndarray) -> pa.StringArray:
    """Returns (n, 2) uint64 words as ids; the inverse of `id_words`."""
    n = len(words)
    if not n:
        return pa.array([], pa.string())
    data = binascii.hexlify(words.astype(">u8").tobytes())
    offsets = np.arange(0, 32 * (n + 1), 32, dtype=np.int32)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(data))
