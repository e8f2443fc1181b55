"""The compiled order of a mixture: from a sample's index to a pack and back, in constant time.

A place in a block is permuted; the place says which part the sample is of and which draw k of that
part; of a part with n packs that is pack permutation_e(k mod n), e = k div n being the epoch. A
permutation of n items is a keyed Feistel network that walks its cycle until it falls below n (Black
and Rogaway 2002, "Ciphers with arbitrary finite domains"): about 100 ns and no memory, where a
shuffled table of 10^9 packs would take 8 GB for each epoch.

The arrays are those of `mixtures.schedule.Schedule`. See `mixtures.keyed` for why all of this
stands in one file.
"""

import numpy as np
from numba import njit

BLOCK = 256
CYCLE = 1 << 20
"""Samples after which a phase repeats its shares: weights are exact to 1e-6."""

_ROUNDS = 6
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_U1, _U27, _U30, _U31 = (np.uint64(n) for n in (1, 27, 30, 31))


@njit(cache=True, nogil=True)
def locate(indices, starts, base, table, tail, num_packs, part_keys, block_key):
    """Returns part, epoch and pack (inside the part) of samples below starts[-1], each int64."""
    parts = np.empty(len(indices), np.int64)
    epochs = np.empty(len(indices), np.int64)
    packs = np.empty(len(indices), np.int64)
    for i in range(len(indices)):
        phase = np.searchsorted(starts, indices[i], "right") - 1
        length = starts[phase + 1] - starts[phase]
        cycle, rest = divmod(indices[i] - starts[phase], CYCLE)
        block, slot = divmod(rest, BLOCK)
        size = min(BLOCK, length - cycle * CYCLE - block * BLOCK)
        slot = permute(slot, size, _member(block_key, indices[i] - slot))
        part = 0
        while True:
            end = table[phase, block + 1, part] if size == BLOCK else tail[phase, part]
            count = end - table[phase, block, part]
            if slot < count:
                break
            slot -= count
            part += 1
        draw = base[phase, part] + table[phase, block, part] + slot
        if cycle:
            draw += cycle * table[phase, -1, part]
        epoch, place = divmod(draw, num_packs[part])
        parts[i], epochs[i] = part, epoch
        packs[i] = permute(place, num_packs[part], _member(part_keys[part], epoch))
    return parts, epochs, packs


@njit(cache=True)
def index_of(part, epoch, pack, starts, base, table, tail, num_packs, part_keys, block_key):
    """Returns the index that `locate` sends to (part, epoch, pack), -1 if there is none."""
    count = num_packs[part]
    draw = epoch * count + unpermute(pack, count, _member(part_keys[part], epoch))
    if draw >= base[-1, part]:
        return -1
    phase = 0
    while base[phase + 1, part] <= draw:
        phase += 1
    length = starts[phase + 1] - starts[phase]
    rest = draw - base[phase, part]
    cycle = np.int64(0)
    if length >= CYCLE:
        cycle, rest = divmod(rest, table[phase, -1, part])
    # the last block that begins with at most `rest` draws of the part behind it
    low, high = 0, min(table.shape[1] - 1, (length - cycle * CYCLE) // BLOCK)
    while low < high:
        middle = (low + high + 1) // 2
        if table[phase, middle, part] <= rest:
            low = middle
        else:
            high = middle - 1
    first = cycle * CYCLE + low * BLOCK
    size = min(BLOCK, length - first)
    slot = rest - table[phase, low, part]
    for before in range(part):
        end = table[phase, low + 1, before] if size == BLOCK else tail[phase, before]
        slot += end - table[phase, low, before]
    first += starts[phase]
    return first + unpermute(slot, size, _member(block_key, first))


@njit(cache=True)
def _mix(value):
    """Returns a bijective 64-bit mix of a uint64 (the finaliser of SplitMix64)."""
    value = (value ^ (value >> _U30)) * _MULTIPLIER_1
    value = (value ^ (value >> _U27)) * _MULTIPLIER_2
    return value ^ (value >> _U31)


@njit(cache=True)
def _member(key, number):
    """Returns the key with this number in a family of keys: of an epoch, of a block."""
    return _mix(np.uint64(key) ^ _mix(np.uint64(number) * _STEP + _STEP))


@njit(cache=True)
def _round(key, step, half):
    """Returns the Feistel round function of a half."""
    return _mix((np.uint64(key) ^ half * _STEP) + np.uint64(step) * _MULTIPLIER_2)


@njit(cache=True)
def permute(index, count, key):
    """Returns where a keyed permutation of range(count) sends an index."""
    low, low_mask, high_mask = _halves(count)
    value = np.uint64(index)
    while True:
        right = value & low_mask
        left = value >> low
        for step in range(_ROUNDS):
            if step & 1:
                right ^= _round(key, step, left) & low_mask
            else:
                left ^= _round(key, step, right) & high_mask
        value = (left << low) | right
        if value < np.uint64(count):
            return np.int64(value)


@njit(cache=True)
def unpermute(image, count, key):
    """Returns what `permute` with the same count and key sends to `image`."""
    low, low_mask, high_mask = _halves(count)
    value = np.uint64(image)
    while True:
        right = value & low_mask
        left = value >> low
        for step in range(_ROUNDS - 1, -1, -1):
            if step & 1:
                right ^= _round(key, step, left) & low_mask
            else:
                left ^= _round(key, step, right) & high_mask
        value = (left << low) | right
        if value < np.uint64(count):
            return np.int64(value)


@njit(cache=True)
def _halves(count):
    """Returns the width of the low half and both masks of the smallest domain that holds count."""
    bits = 1
    while (np.int64(1) << bits) < count:
        bits += 1
    low = np.uint64((bits + 1) // 2)
    high = np.uint64(bits // 2)
    return low, (_U1 << low) - _U1, (_U1 << high) - _U1
