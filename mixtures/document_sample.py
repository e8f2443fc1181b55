"""A sample of documents by keyed hash of the id: the same documents in any order of reading.

One pass keeps the documents with the smallest hashes whose bytes fit the budget, so memory is the
budget and not the dataset, and neither files nor row groups change what is drawn.
"""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from mixtures.keyed import derive_key, hash_ids
from pipelines.dataset import Dataset


def sample_texts(datasets: Sequence[Dataset], seed: int, sample_bytes: int) -> list[str]:
    """Returns texts in the order of their keyed hashes, `sample_bytes` of UTF-8 at most.

    The document that crosses the budget is cut there. Empty and null texts are left out.
    """
    key = derive_key(seed, "vocabulary sample")
    # a heap with the largest hash on top; the id parts documents of equal hash
    kept: list[tuple[int, str, bytes]] = []
    total = 0
    for dataset in datasets:
        for batch in dataset.batches("data", ["id", "text"]):
            hashes = hash_ids(batch.column("id"), key)
            largest = np.uint64(-kept[0][0] if total >= sample_bytes else 2**64 - 1)
            for row in np.flatnonzero(hashes <= largest).tolist():
                text = batch.column("text")[row].as_py()
                if not text:
                    continue
                data = text.encode()
                entry = (-int(hashes[row]), batch.column("id")[row].as_py(), data)
                heapq.heappush(kept, entry)
                total += len(data)
                while total - len(kept[0][2]) >= sample_bytes:
                    total -= len(heapq.heappop(kept)[2])
    return list(_within(sorted(kept, reverse=True), sample_bytes))


def _within(entries: list[tuple[int, str, bytes]], sample_bytes: int) -> Iterator[str]:
    left = sample_bytes
    for _, _, data in entries:
        if left <= 0:
            return
        # errors can only be the character that the cut halves
        yield data[:left].decode(errors="ignore")
        left -= len(data)
