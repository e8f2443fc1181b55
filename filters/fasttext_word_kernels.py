"""fastText prediction for models of words and word n-grams with softmax, compiled.

That is what train_supervised makes by default and what quality classifiers are (DCLM's too). One
pass over the bytes splits words, hashes them and finds their rows, a second one adds the rows; no
string is made of a word and Python is not asked for each document. That is as fast as fastText's
own C++ (44 MB/s a core on source code, 16 dimensions, bigrams) and needs neither a list of Python
strings nor the library. Sums are in another order, so probabilities differ by about 2e-6.

Compiled code here uses no constant and calls no compiled code of another file: numba's disk cache
watches only the kernel's own file. So the hash and the separators of fasttext_kernels stand here,
too.

Source: github.com/facebookresearch/fastText 0.9.3, src/dictionary.cc, loss.cc.
"""

import math
from typing import NamedTuple

import numpy as np

from pipelines.kernel import kernel

U = np.uint64
FNV_START, FNV_PRIME, LOW, SIGN = U(2166136261), U(16777619), U(0xFFFFFFFF), U(0xFFFFFF00)
NGRAM_PRIME, TOP_BIT, HIGH = U(116049371), U(0x80000000), U(0xFFFFFFFF00000000)
LABEL = np.frombuffer(b"__label__", np.uint8)
END_OF_LINE = np.frombuffer(b"</s>", np.uint8)


class WordModel(NamedTuple):
    """The arrays of a classifier."""

    table: np.ndarray
    """int32, a power of two: word + 1 by hash, open addressing."""
    letters: np.ndarray
    bounds: np.ndarray
    """Word w of the vocabulary is letters[bounds[w]:bounds[w + 1]]; its row is w."""
    bucket_rows: np.ndarray
    """int32 (buckets,): the row of a word n-gram's bucket, or -1; empty without n-grams."""
    rows: np.ndarray
    """float32 (rows, dimensions)"""
    output: np.ndarray
    """float32 (labels, dimensions)"""
    word_ngrams: int
    """Words of the longest n-gram."""


@kernel
def add_byte(h, b):
    """Extends an FNV-1a hash; fastText takes bytes as signed."""
    b = U(b)
    if b >= 128:
        b |= SIGN
    return ((h ^ b) * FNV_PRIME) & LOW


@kernel
def hash_bytes(data, start, stop):
    """Returns fastText's 32-bit hash of data[start:stop]."""
    h = FNV_START
    for i in range(start, stop):
        h = add_byte(h, data[i])
    return h


@kernel
def is_equal(data, start, stop, value):
    """True if data[start:stop] is value."""
    if stop - start != value.size:
        return False
    i = 0
    while i < value.size and data[start + i] == value[i]:
        i += 1
    return i == value.size


@kernel
def index_vocabulary(letters, bounds):
    """Returns the hash table of a vocabulary."""
    size = 64
    while size < 4 * bounds.size:
        size *= 2
    table = np.zeros(size, np.int32)
    mask = U(size - 1)
    for w in range(bounds.size - 1):
        slot = hash_bytes(letters, bounds[w], bounds[w + 1]) & mask
        while table[slot]:
            slot = (slot + U(1)) & mask
        table[slot] = w + 1
    return table


@kernel
def find_word(table, letters, bounds, data, start, stop, h):
    """Returns the number of the word whose hash is h, or -1."""
    mask = U(table.size - 1)
    slot = h & mask
    size = stop - start
    while table[slot]:
        word = U(table[slot] - 1)
        begin = bounds[word]
        if bounds[word + U(1)] - begin == size:
            i = 0
            while i < size and letters[begin + i] == data[start + i]:
                i += 1
            if i == size:
                return np.int64(word)
        slot = (slot + U(1)) & mask
    return -1


@kernel
def find_ngrams(bucket_rows, longest, h, seen, partial, found, count):
    """Puts the rows of the n-grams that end in the word with hash h into found from count on.

    partial[k] is the hash of the k + 1 words before it, of which seen are there. Returns the new
    count.
    """
    signed = h | HIGH if h & TOP_BIT else h  # fastText keeps hashes as int32
    for length in range(min(longest, seen + 1), 1, -1):
        value = partial[length - 2] * NGRAM_PRIME + signed
        partial[length - 1] = value
        row = bucket_rows[value % U(bucket_rows.size)]
        found[count] = row
        count += row >= 0
    partial[0] = signed
    return count


@kernel
def is_separator(b):
    """True for the bytes at which fastText splits words."""
    return b == 32 or (b >= 9 and b <= 13) or b == 0


@kernel
def find_rows(model, data, start, stop, partial, found):
    """Fills found with the rows of a text and of the line's end; returns the rows and the words.

    A word that starts with __label__ is a label to fastText and counts as a word, but has no rows.
    """
    table, letters, bounds, bucket_rows = (
        model.table,
        model.letters,
        model.bounds,
        model.bucket_rows,
    )
    longest = model.word_ngrams
    count, words, seen = 0, 0, 0
    ended = False
    i = start
    while i < stop and not ended:
        if is_separator(data[i]):
            i += 1
            continue
        begin = i
        h = FNV_START
        while i < stop and not is_separator(data[i]):
            h = add_byte(h, data[i])
            i += 1
        words += 1
        word = find_word(table, letters, bounds, data, begin, i, h)
        if word < 0 and is_equal(data, begin, min(i, begin + LABEL.size), LABEL):
            continue
        found[count] = word
        count += word >= 0
        count = find_ngrams(bucket_rows, longest, h, seen, partial, found, count)
        seen += 1
        ended = is_equal(data, begin, i, END_OF_LINE)
    if not ended:
        h = hash_bytes(END_OF_LINE, 0, END_OF_LINE.size)
        word = find_word(table, letters, bounds, END_OF_LINE, 0, END_OF_LINE.size, h)
        found[count] = word
        count += word >= 0
        count = find_ngrams(bucket_rows, longest, h, seen, partial, found, count)
    return count, words


@kernel
def label_probabilities(model, data, offsets, valid, label):
    """Returns the probability of a label for each text, float64 (n,); NaN without a known word."""
    n = valid.size
    rows, output = model.rows, model.output
    num_labels, dimensions = output.shape
    longest = 0
    for d in range(n):
        longest = max(longest, np.int64(offsets[d + 1] - offsets[d]))
    # a word takes two bytes with its separator; one more for the line's end and one to write past
    found = np.empty((longest // 2 + 2) * model.word_ngrams + 1, np.int32)
    probabilities = np.full(n, np.nan)
    partial = np.zeros(model.word_ngrams, np.uint64)
    hidden = np.empty(dimensions, np.float32)
    scores = np.empty(num_labels)
    for d in range(n):
        if not valid[d]:
            continue
        start, stop = np.int64(offsets[d]), np.int64(offsets[d + 1])
        count, words = find_rows(model, data, start, stop, partial, found)
        if words == 0 or count == 0:
            continue
        hidden[:] = 0
        for k in range(count):
            row = U(found[k])
            for t in range(dimensions):
                hidden[t] += rows[row, t]
        scale = np.float32(1.0 / count)
        for k in range(num_labels):
            dot = np.float32(0)
            for t in range(dimensions):
                dot += output[k, t] * (hidden[t] * scale)
            scores[k] = dot
        highest = scores.max()
        total = 0.0
        for k in range(num_labels):
            total += math.exp(scores[k] - highest)
        probabilities[d] = math.exp(scores[label] - highest) / total
    return probabilities
