"""The index of decontamination: which n-grams speak for which benchmark item, and which do not.

An n-gram that stands in many items of a benchmark, or in texts that are known to be clean, says
nothing about one item, so it is left out; so is one of little but numbers, since all numbers are
the same word and tables have them by the thousand. An item that keeps too few cannot be found any
more: it is named, so that nobody takes its absence from the hits for cleanness.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.benchmark_sets import Benchmark, read_benchmark
from pipelines.decontaminate_kernels import DIGIT, Table, fill_table, gram_hashes
from pipelines.decontaminate_windows import Items
from pipelines.dedup.folds import word_folds
from pipelines.text_buffers import string_buffers
from pipelines.unicode_tables import NUM_CODE_POINTS

FILTER_BITS = 16
"""Bits of the filter for each n-gram, at least: 1 in 17 n-grams of clean text passes or fewer."""
PART_BYTES = 8 << 20


@dataclass(frozen=True)
class NgramSearch:
    """How items are looked for; the defaults are chosen on GSM8K's training problems.

    Raises:
        ValueError: a number is too small.
    """

    ngram: int = 5
    """Words in an n-gram."""
    fold_digits: bool = True
    """Whether all numbers are the same word."""
    max_items: int = 10
    """An n-gram in more items of a benchmark is boilerplate and speaks for none."""
    min_words: int = 16
    """An item of fewer words is measured as if it had so many: half of a short one says little."""
    spread: int = 2
    """The first words of an item's matches are nearer than so many times its length."""

    def __post_init__(self) -> None:
        for name in ("ngram", "max_items", "min_words", "spread"):
            least = 2 if name == "ngram" else 1
            if getattr(self, name) < least:
                raise ValueError(
                    f"NgramSearch: {name} is {getattr(self, name)}, wanted {least} or more"
                )


class Index(NamedTuple):
    """What is looked for; row-aligned arrays have one element for each item."""

    table: Table
    items: Items
    names: pa.StringArray
    """The item's benchmark."""
    rows: pa.Int64Array
    """Its row in the benchmark."""
    attainable: np.ndarray
    """int32: how many of the item's words its n-grams cover."""

    def needs(self, min_share: float) -> np.ndarray:
        """Returns int32 (items,): the fewest covered words whose share is min_share or more."""
        whole = self.items.whole
        need = np.ceil(min_share * whole).astype(np.int32)
        need -= (need > 0) & ((need - 1) / whole >= min_share)
        return np.maximum(need + (need / whole < min_share), 1)

    def undetectable(self, min_share: float) -> dict[str, list[int]]:
        """Returns by benchmark the rows whose n-grams cover too few words to be a hit.

        Raises:
            ValueError: no item of a benchmark can be found.
        """
        few = pa.array(self.attainable < self.needs(min_share))
        rows = {}
        for name in self.names.unique():
            mine = pc.equal(self.names, name)
            found = self.rows.filter(pc.and_(mine, few)).to_pylist()
            if len(found) == pc.sum(mine).as_py():
                raise ValueError(
                    f"Benchmark {name}: none of its {len(found)} items keeps enough words in "
                    f"n-grams of {self.items.size} that are neither boilerplate nor in clean "
                    f"texts; give longer fields, or a smaller ngram or min_words"
                )
            rows[name.as_py()] = found
        return rows


@functools.cache
def build_index(
    benchmarks: tuple[Benchmark, ...], clean_texts: tuple[Benchmark, ...], search: NgramSearch
) -> Index:
    """Reads the benchmarks and builds their index, once in a process.

    Raises:
        ValueError: a file is missing or broken.
    """
    ngram = search.ngram
    folds = digit_folds() if search.fold_digits else word_folds()
    texts = [read_benchmark(benchmark).texts for benchmark in benchmarks]
    counts = [len(part) for part in texts]
    hashes, item, place, words, numbers = _grams(
        [text for part in texts for text in part], folds, ngram
    )
    group = np.repeat(np.arange(len(counts)), counts)
    # the first place of each n-gram in each item
    order = np.lexsort((place, item, hashes))
    hashes, item, place, numbers = hashes[order], item[order], place[order], numbers[order]
    first = np.ones(len(hashes), bool)
    first[1:] = (hashes[1:] != hashes[:-1]) | (item[1:] != item[:-1])
    hashes, item, place, numbers = hashes[first], item[first], place[first], numbers[first]
    speaks = ~_common(hashes, group[item], search.max_items) & (2 * numbers <= ngram)
    for texts_known in clean_texts:
        speaks &= ~_stands_in(hashes, texts_known, folds, ngram)
    attainable = _attainable(item[speaks], place[speaks], words, ngram)
    known = np.unique(hashes[speaks])
    offsets = np.searchsorted(hashes[speaks], known)
    starts = np.cumsum([0, *counts])
    return Index(
        _table(known, folds, ngram),
        Items(
            ngram,
            np.append(offsets, speaks.sum()).astype(np.int64),
            item[speaks].astype(np.int32),
            place[speaks].astype(np.int32),
            words,
            np.maximum(attainable, search.min_words),
            search.spread,
        ),
        pa.array([benchmarks[i].name for i in group.tolist()], pa.string()),
        pa.array(np.arange(len(group)) - starts[group], pa.int64()),
        attainable,
    )


@functools.cache
def digit_folds() -> np.ndarray:
    """Returns the table of `word_folds` with every decimal digit as one flagged "0"."""
    folds = word_folds().copy()
    characters = np.arange(NUM_CODE_POINTS, dtype=np.uint32).view("U1")
    folds[np.strings.isdecimal(characters)] = np.uint32(ord("0")) | DIGIT
    folds.setflags(write=False)
    return folds


def _grams(
    texts: list[str], folds: np.ndarray, ngram: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns n-gram hashes, their text and word, each text's words, each n-gram's numbers."""
    offsets, data, valid = string_buffers(pa.array(texts, pa.string()))
    hashes = np.empty(data.size + len(texts), np.uint64)
    stops, words = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int32)
    numbers = np.empty(len(hashes), np.int32)
    gram_hashes(offsets, data, valid, folds, ngram, hashes, numbers, stops, words)
    sizes = np.diff(stops, prepend=0)
    text = np.repeat(np.arange(len(texts)), sizes)
    total = int(sizes.sum())
    place = np.arange(total) - (stops - sizes)[text]
    return hashes[:total], text, place, words, numbers[:total]


def _common(hashes: np.ndarray, group: np.ndarray, max_items: int) -> np.ndarray:
    """Says which n-grams stand in more than max_items items of their benchmark."""
    common = np.zeros(len(hashes), bool)
    for number in range(int(group.max(initial=-1)) + 1):
        mine = np.flatnonzero(group == number)
        _, index, counts = np.unique(hashes[mine], return_inverse=True, return_counts=True)
        common[mine] = counts[index] > max_items
    return common


def _stands_in(hashes: np.ndarray, known: Benchmark, folds: np.ndarray, ngram: int) -> np.ndarray:
    """Says which n-grams stand in texts that are known to be clean."""
    stands = np.zeros(len(hashes), bool)
    for part in _parts(read_benchmark(known).texts):
        stands |= np.isin(hashes, _grams(part, folds, ngram)[0])
    return stands


def _parts(texts: tuple[str, ...]) -> Iterator[list[str]]:
    part, size = [], 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= PART_BYTES:
            yield part
            part, size = [], 0
    yield part


def _attainable(item: np.ndarray, place: np.ndarray, words: np.ndarray, ngram: int) -> np.ndarray:
    """Returns int32 (items,): how many of its words the n-grams of an item cover."""
    starts = np.cumsum(words, dtype=np.int64) - words
    covered = np.zeros(int(words.sum()), bool)
    for k in range(ngram):
        covered[starts[item] + place + k] = True
    sums = np.append(0, np.cumsum(covered))
    return (sums[starts + words] - sums[starts]).astype(np.int32)


def _table(known: np.ndarray, folds: np.ndarray, ngram: int) -> Table:
    size = max(1024, 1 << (FILTER_BITS * len(known) - 1).bit_length())
    slots = max(64, 1 << (2 * len(known) - 1).bit_length())
    bits, hashes = np.zeros(size // 64, np.uint64), np.zeros(slots, np.uint64)
    numbers = np.zeros(slots, np.int32)
    fill_table(known, bits, hashes, numbers)
    return Table(folds, ngram, bits, hashes, numbers)
