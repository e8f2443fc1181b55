"""What counts as the same word: letters and digits folded to lower case, the rest separates.

Runs of letters, digits and combining marks are words; every other character separates them.
Scripts that are written without spaces (Han, kana, Thai, Lao, Myanmar, Khmer) give a word for each
character. Digits stay as they are unless they are to be folded: documents that differ in their
numbers are not the same (folding, as datatrove does, makes all tables of one layout equal).
"""

import functools
import unicodedata

import numpy as np

from pipelines.dedup.minhash_kernels import SINGLE
from pipelines.unicode_tables import NUM_CODE_POINTS

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)

_MARKS_WITHIN = ((0x300, 0x1FFFF), (0xE0100, 0xE01EF))
"""Every combining mark lies there; asking all code points takes a second."""

_LAST_CASED = 0x20000
"""No letter from here on has a lower case; asking for it takes half a second."""


@functools.cache
def word_folds(fold_digits: bool = False) -> np.ndarray:
    """Returns uint32 (1114112,): 0 separates words, else the folded character.

    With `fold_digits` every decimal digit of every script is "0".

    The flag SINGLE marks a character that is a word by itself. The table has 4.4 MB, of which a
    text touches only the cache lines of its scripts.
    """
    characters = np.arange(NUM_CODE_POINTS, dtype=np.uint32).view("U1")
    word = np.strings.isalpha(characters) | np.strings.isdigit(characters)
    word |= np.strings.isdecimal(characters) | np.strings.isnumeric(characters)
    for first, last in _MARKS_WITHIN:
        other = (first + np.flatnonzero(~word[first : last + 1])).tolist()
        word[[point for point in other if unicodedata.category(chr(point))[0] == "M"]] = True
    folds = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    folds[:_LAST_CASED] = np.strings.lower(characters[:_LAST_CASED]).view(np.uint32)
    folds[~word] = 0
    for first, last in _UNSPACED:
        part = folds[first : last + 1]
        part[part != 0] |= SINGLE
    if fold_digits:
        folds[np.strings.isdecimal(characters)] = ord("0")
    folds.setflags(write=False)
    return folds
