"""Keyed hashes: draws that depend on a seed and a document's id alone.

Whether a document is sampled or held out is a property of its id, not of a generator's state, so it
is the same in any order of reading and with any number of workers. It is no cryptography.

Compiled code of this package never calls compiled code of another file or reads its constants:
numba's disk cache watches one file only and would keep what the other one was. So the four lines of
`_mix` stand in `mixtures.order`, too.
"""

import hashlib

import numpy as np
import pyarrow as pa
from numba import njit

_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_HASH = np.uint8(ord("#"))
_U0, _U1, _U8, _U27, _U30, _U31 = (np.uint64(n) for n in (0, 1, 8, 27, 30, 31))


def derive_key(seed: int, *labels: str) -> np.uint64:
    """Returns the 64-bit key of a use: BLAKE2b over the seed and the length-prefixed labels."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8)
    for label in labels:
        data = label.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return np.uint64(int.from_bytes(digest.digest(), "little"))


@njit(cache=True)
def _mix(value):
    """Returns a bijective 64-bit mix of a uint64 (the finaliser of SplitMix64)."""
    value = (value ^ (value >> _U30)) * _MULTIPLIER_1
    value = (value ^ (value >> _U27)) * _MULTIPLIER_2
    return value ^ (value >> _U31)


def hash_ids(ids: pa.StringArray, key: np.uint64) -> np.ndarray:
    """Returns a keyed 64-bit hash of each document id, up to "#".

    The children of a split document (`parent#k`) hash as their parent, so that a sample or a
    held-out set takes all of them or none.

    Raises:
        ValueError: an id is null.
    """
    if ids.null_count:
        raise ValueError(f"hash_ids: {ids.null_count} of {len(ids)} document ids are null")
    _, offsets, data = ids.buffers()
    if data is None or not len(ids):
        return np.full(len(ids), _hash_ids(np.zeros(2, np.int32), np.zeros(1, np.uint8), key)[0])
    ends = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    return _hash_ids(ends, np.frombuffer(data, np.uint8), key)


@njit(cache=True)
def _hash_ids(offsets, data, key):
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for row in range(len(hashes)):
        state = _mix(key + _STEP)
        word = np.uint64(0)
        size = np.uint64(0)
        for position in range(offsets[row], offsets[row + 1]):
            if data[position] == _HASH:
                break
            word = (word << _U8) | np.uint64(data[position])
            size += _U1
            if size % _U8 == _U0:
                state = _mix(state ^ word)
                word = np.uint64(0)
        hashes[row] = _mix(_mix(state ^ word) ^ (size * _STEP))
    return hashes


def share_threshold(share: float) -> np.uint64:
    """Returns the hash below which a keyed share of all documents lies; share in [0, 1)."""
    return np.uint64(int(share * 2.0**64))
