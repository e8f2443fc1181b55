"""fastText classifiers read into arrays, for compiled prediction (filters.fasttext_kernels).

Source of the format and of the arithmetic: github.com/facebookresearch/fastText 0.9.3, src/args.cc,
dictionary.cc, quantmatrix.cc, productquantizer.cc and loss.cc.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from filters.fasttext_kernels import Model, index_words

MAGIC, VERSION = 793712314, 12
HIERARCHICAL_SOFTMAX, SUPERVISED = 1, 3
ARGUMENTS = struct.Struct("<12id")
CENTROIDS = 256
NO_CHILD = -1
UNREACHED = 10**15


@dataclass(frozen=True)
class Classifier:
    """A model and the names of its labels."""

    model: Model
    labels: tuple[str, ...]


def load_classifier(path: str) -> Classifier:
    """Reads a supervised model with hierarchical softmax and no word n-grams, such as lid.176.

    Raises:
        ValueError: the file is no such model; the message says why.
        OSError: the file cannot be read.
    """
    file = _File(path)
    magic, version = file.integers(2)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"{path} is no fastText model of format version {VERSION}")
    values = ARGUMENTS.unpack(file.take(ARGUMENTS.size))
    dimensions, word_ngrams, loss, kind, buckets, shortest, longest = (
        values[i] for i in (0, 5, 6, 7, 8, 9, 10)
    )
    if (loss, kind, word_ngrams) != (HIERARCHICAL_SOFTMAX, SUPERVISED, 1):
        raise ValueError(
            f"{path}: loss {loss}, model {kind}, word n-grams {word_ngrams}; wanted a supervised "
            f"model ({SUPERVISED}) with hierarchical softmax ({HIERARCHICAL_SOFTMAX}) and 1"
        )
    size, num_words, num_labels = file.integers(3)
    _, num_kept = struct.unpack("<qq", file.take(16))
    entries, counts = [], []
    for _ in range(size):
        entries.append(file.string())
        counts.append(struct.unpack("<qb", file.take(9))[0])
    bucket_rows = np.arange(num_words, num_words + buckets, dtype=np.int32)
    if num_kept >= 0:  # pruned: the other n-grams have no row
        bucket, row = np.frombuffer(file.take(8 * num_kept), "<i4").reshape(-1, 2).T
        bucket_rows[:] = -1
        bucket_rows[bucket] = num_words + row
    rows = _quantised(file) if file.flag() else file.matrix()
    if file.flag():
        raise ValueError(f"{path}: the output matrix is quantised, which is not supported")
    output = file.matrix()
    if rows.shape[1] != dimensions or output.shape != (num_labels, dimensions):
        raise ValueError(f"{path}: matrices do not have {dimensions} dimensions, or are truncated")
    words = entries[:num_words]
    letters = np.frombuffer(b"".join(words), np.uint8)
    bounds = np.cumsum([0, *map(len, words)]).astype(np.int32)
    kept = np.packbits(bucket_rows >= 0, bitorder="little")
    kept = np.pad(kept, (0, -kept.size % 8)).view("<u8")
    model = Model(
        index_words(letters, bounds),
        letters,
        bounds,
        kept,
        bucket_rows,
        rows,
        output,
        _tree(counts[num_words:]),
        shortest,
        longest,
    )
    labels = (label.decode().removeprefix("__label__") for label in entries[num_words:])
    return Classifier(model, tuple(labels))


class _File:
    """Takes little-endian values off the front of a file."""

    def __init__(self, path: str) -> None:
        self._path, self._data, self._at = path, Path(path).read_bytes(), 0

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise ValueError(f"{self._path} is truncated: {len(self._data)} bytes")
        self._at += size
        return self._data[self._at - size : self._at]

    def integers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}i", self.take(4 * count))

    def flag(self) -> bool:
        return self.take(1) != b"\0"

    def string(self) -> bytes:
        end = self._data.find(b"\0", self._at)
        return self.take(end - self._at + 1)[:-1]

    def floats(self, *shape: int) -> np.ndarray:
        return np.frombuffer(self.take(4 * int(np.prod(shape))), "<f4").reshape(shape)

    def matrix(self) -> np.ndarray:
        return self.floats(*struct.unpack("<qq", self.take(16)))


def _quantised(file: _File) -> np.ndarray:
    """Returns the rows of a product-quantised matrix as float32 (rows, dimensions)."""
    with_norms = file.flag()
    num_rows, dimensions = struct.unpack("<qq", file.take(16))
    (num_codes,) = file.integers(1)
    codes = np.frombuffer(file.take(num_codes), np.uint8).reshape(num_rows, -1)
    rows = _decoded(file, codes)
    if with_norms:
        norms = np.frombuffer(file.take(num_rows), np.uint8).reshape(num_rows, 1)
        rows = rows * _decoded(file, norms)
    return np.ascontiguousarray(rows[:, :dimensions])


def _decoded(file: _File, codes: np.ndarray) -> np.ndarray:
    """Reads a product quantiser and returns what its codes stand for."""
    dimensions, parts, size, last_size = file.integers(4)
    centroids = file.floats(CENTROIDS * dimensions)
    columns = []
    for part in range(parts):
        width = last_size if part == parts - 1 else size
        start = part * CENTROIDS * size
        table = centroids[start : start + CENTROIDS * width].reshape(CENTROIDS, width)
        columns.append(table[codes[:, part]])
    return np.concatenate(columns, axis=1)


def _tree(counts: list[int]) -> np.ndarray:
    """Returns the Huffman tree over labels sorted by count: children int32 (2 labels - 1, 2)."""
    n = len(counts)
    weights = [*counts, *[UNREACHED] * (n - 1)]
    children = np.full((2 * n - 1, 2), NO_CHILD, np.int32)
    leaf, node = n - 1, n
    for parent in range(n, 2 * n - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                children[parent, side] = leaf
                leaf -= 1
            else:
                children[parent, side] = node
                node += 1
        weights[parent] = sum(weights[child] for child in children[parent])
    return children
