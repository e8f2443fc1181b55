"""From the hashes of a document's shingles to minima and bands, as datatrove and RedPajama do.

They share one formula, after datasketch: the least of (a h + b) mod (2^61 - 1) over all shingles,
of which they keep 32 or 64 bits. The product overflows 64 bits before the prime is applied, so it
is no permutation and the values are the library's, not the textbook's: what is reproduced is the
overflow as well. NeMo's has 32 bits all through and meets no prime.
"""

import numpy as np
import pyarrow as pa

from pipelines.dedup.peer_kernels import hash_bands, permuted_minima
from pipelines.text_buffers import string_buffers

MERSENNE = np.uint64((1 << 61) - 1)


def minima(
    stops: np.ndarray,
    hashes: np.ndarray,
    multipliers: np.ndarray,
    additions: np.ndarray,
    bits: int,
) -> np.ndarray:
    """Returns the signatures of documents.

    Args:
        stops: int64 (n,), where each document's hashes end.
        hashes: uint64, one for each shingle.
        multipliers: uint64 (p,).
        additions: uint64 (p,).
        bits: of a value, 32 or 64.

    Returns:
        uint64 (n, p).
    """
    result = np.empty((len(stops), len(multipliers)), np.uint64)
    permuted_minima(stops, hashes, multipliers, additions, bits, result)
    return result


def banded(
    text: pa.StringArray, values: np.ndarray, signed: np.ndarray, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of the bands, and sizes as a `Signature` has to give them.

    Args:
        text: n documents.
        values: uint64 (n, p), the minima.
        signed: bool (n,), which documents have a signature.
        num_rows: minima in a band; those behind the last whole band are not looked at.

    Returns:
        uint64 (n, p // num_rows); and int32 (n,): the bytes of the text, which has no more
        shingles than that by any rule, or 0 where there is no signature.
    """
    bands = np.empty((len(values), values.shape[1] // num_rows), np.uint64)
    hash_bands(values, num_rows, bands)
    num_bytes = np.diff(string_buffers(text)[0])
    return bands, np.where(signed, np.maximum(num_bytes, 1), 0).astype(np.int32)


def check_counts(who: str, **counts: int) -> None:
    """Raises ValueError if one of a signature's numbers is below 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{who}: {name} is {value}; wanted 1 or more")
