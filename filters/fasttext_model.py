"""fastText classifiers read into arrays, for compiled prediction (filters.fasttext_kernels).

Source of the format and of the arithmetic: github.com/facebookresearch/fastText 0.9.3, src/args.cc,
dictionary.cc, quantmatrix.cc, productquantizer.cc and loss.cc.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from filters.fasttext_kernels import Model, index_words
from filters.fasttext_word_kernels import WordModel, index_vocabulary

MAGIC, VERSION = 793712314, 12
HIERARCHICAL_SOFTMAX, SOFTMAX, SUPERVISED = 1, 3, 3
ARGUMENTS = struct.Struct("<12id")
CENTROIDS = 256
NO_CHILD = -1
UNREACHED = 10**15


@dataclass(frozen=True)
class Classifier:
    """A model and the names of its labels."""

    model: Model
    labels: tuple[str, ...]


@dataclass(frozen=True)
class WordClassifier:
    """A model of words and word n-grams, and the names of its labels."""

    model: WordModel
    labels: tuple[str, ...]


def load_classifier(path: str) -> Classifier:
    """Reads a supervised model with hierarchical softmax and no word n-grams, such as lid.176.

    Raises:
        ValueError: the file is no such model; the message says why.
        OSError: the file cannot be read.
    """
    read = _read(path)
    if (read.loss, read.kind, read.word_ngrams) != (HIERARCHICAL_SOFTMAX, SUPERVISED, 1):
        raise ValueError(
            f"{path}: loss {read.loss}, model {read.kind}, word n-grams {read.word_ngrams}; wanted "
            f"a supervised model ({SUPERVISED}) with hierarchical softmax "
            f"({HIERARCHICAL_SOFTMAX}) and 1"
        )
    letters, bounds = _packed(read.words)
    kept = np.packbits(read.bucket_rows >= 0, bitorder="little")
    kept = np.pad(kept, (0, -kept.size % 8)).view("<u8")
    model = Model(
        index_words(letters, bounds),
        letters,
        bounds,
        kept,
        read.bucket_rows,
        read.rows,
        read.output,
        _tree(read.label_counts),
        read.shortest,
        read.longest,
    )
    return Classifier(model, read.labels)


def load_word_classifier(path: str) -> WordClassifier:
    """Reads a supervised model with softmax and no character n-grams, such as fastText's default.

    Raises:
        ValueError: the file is no such model; the message says why.
        OSError: the file cannot be read.
    """
    read = _read(path)
    if (read.loss, read.kind, read.longest) != (SOFTMAX, SUPERVISED, 0):
        raise ValueError(
            f"{path}: loss {read.loss}, model {read.kind}, character n-grams up to {read.longest}; "
            f"wanted a supervised model ({SUPERVISED}) with softmax ({SOFTMAX}) and 0"
        )
    letters, bounds = _packed(read.words)
    model = WordModel(
        index_vocabulary(letters, bounds),
        letters,
        bounds,
        read.bucket_rows,
        read.rows,
        read.output,
        read.word_ngrams if read.bucket_rows.size else 1,
    )
    return WordClassifier(model, read.labels)


@dataclass(frozen=True)
class _Read:
    """What a model file holds."""

    word_ngrams: int
    loss: int
    kind: int
    shortest: int
    longest: int
    words: list[bytes]
    labels: tuple[str, ...]
    label_counts: list[int]
    bucket_rows: np.ndarray
    rows: np.ndarray
    output: np.ndarray


def _read(path: str) -> _Read:
    file = _File(path)
    magic, version = file.integers(2)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"{path} is no fastText model of format version {VERSION}")
    values = ARGUMENTS.unpack(file.take(ARGUMENTS.size))
    dimensions, word_ngrams, loss, kind, buckets, shortest, longest = (
        values[i] for i in (0, 5, 6, 7, 8, 9, 10)
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
    labels = tuple(label.decode().removeprefix("__label__") for label in entries[num_words:])
    return _Read(
        word_ngrams,
        loss,
        kind,
        shortest,
        longest,
        entries[:num_words],
        labels,
        counts[num_words:],
        bucket_rows,
        rows,
        output,
    )


def _packed(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the letters of all words as uint8 and their bounds, int32 (words + 1,)."""
    bounds = np.cumsum([0, *map(len, words)]).astype(np.int32)
    return np.frombuffer(b"".join(words), np.uint8), bounds


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
