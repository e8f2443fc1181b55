"""The peer of benchmarks.substring: one suffix array of the whole text, in memory.

pydivsufsort's array and its LCP (Kasai), then numpy: the same windows, cut in the same way. Writes
how many bytes are cut of each document, in order of id.

    python -m benchmarks.substring_suffix_array CORPUS OUT
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydivsufsort

from pipelines.document import document_ids

WINDOW = 100


def corpus_in_order(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bytes of all texts in order of their ids, and where each begins and the end."""
    texts = pq.read_table(folder / "corpus.parquet", columns=["text"])["text"].to_pylist()
    numbers = [str(number) for number in range(len(texts))]
    ids = document_ids("corpus", ["corpus.parquet"] * len(texts), numbers).to_pylist()
    data = [texts[i].encode() for i in np.argsort(ids)]
    bounds = np.append(0, np.cumsum([len(text) for text in data]))
    return np.frombuffer(b"".join(data), np.uint8).copy(), bounds


def duplicate_bytes(text: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns true for the bytes that windows cover which occur before."""
    suffixes = pydivsufsort.divsufsort(text)
    shared = pydivsufsort.kasai(text, suffixes)  # with the next one
    document = np.repeat(np.arange(len(bounds) - 1, dtype=np.int32), np.diff(bounds))
    valid = suffixes + WINDOW <= bounds[document[suffixes] + 1]
    starts = np.flatnonzero(np.append(True, shared[:-1] < WINDOW))
    earliest = np.minimum.reduceat(np.where(valid, suffixes, np.iinfo(np.int32).max), starts)
    earliest = np.repeat(earliest, np.diff(np.append(starts, len(text))))
    found = np.flatnonzero(valid & (earliest < suffixes))
    place, first = suffixes[found], earliest[found]
    again = (document[place] != document[first]) | (first + WINDOW <= place)
    change = np.zeros(len(text) + 1, np.int32)
    np.add.at(change, place[again], 1)
    np.add.at(change, place[again] + WINDOW, -1)
    return np.cumsum(change[:-1]) > 0


def trimmed(covered: np.ndarray, text: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Takes incomplete characters off the ends of what is covered, within documents."""
    covered = covered.copy()
    follows = text & 0xC0 == 0x80
    for low, high in pairwise(bounds):
        inside = np.concatenate([[False], covered[low:high], [False]])
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + low
        for start, end in edges.reshape(-1, 2):
            while start < end and follows[start]:
                covered[start] = False
                start += 1
            while end < high and end > start and follows[end]:
                end -= 1
                covered[end] = False
    return covered


def main() -> None:
    """Cuts a corpus and prints what came of it."""
    corpus, out = map(Path, sys.argv[1:])
    text, bounds = corpus_in_order(corpus)
    covered = trimmed(duplicate_bytes(text, bounds), text, bounds)
    out.mkdir(parents=True)
    np.save(out / "cut.npy", np.add.reduceat(covered, bounds[:-1], dtype=np.int64))
    text[~covered].tofile(out / "left")
    print(json.dumps({"text_bytes": len(text), "cut_bytes": int(covered.sum())}))


if __name__ == "__main__":
    main()
