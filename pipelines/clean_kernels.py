"""Which texts need a repair: one pass over the bytes, so that the others cost next to nothing.

The repairs are slow (ftfy 4 MB/s) and few documents need one. What is asked here is necessary for
a repair, never sufficient: a text that passes has nothing to repair, one that does not is looked
at again by ftfy and unicodedata themselves.

For mojibake the condition comes from ftfy's own test. ftfy changes a text only where its badness
expression matches, and each alternative of that expression holds two neighbours that rarely meet
in real text; MOJIBAKE_PAIRS lists one such pair of character sets for each. Every pair is one bit,
so that asking all of them is one "and" of two table entries.
"""

import unicodedata
from functools import cache

import numpy as np
import pyarrow as pa
from ftfy.badness import MOJIBAKE_CATEGORIES

from pipelines.kernel import kernel
from pipelines.text_buffers import eight_bytes, string_buffers

MOJIBAKE = 1
CONTROL = 2
COMPOSES = 4  # not in NFC by itself, or perhaps not beside its neighbours

FORMAT_CONTROLS = (0xFEFF, 0xFFF9, 0xFFFA, 0xFFFB)  # byte order mark, interlinear annotation
LAST_COMPOSING = 0x30000
HANGUL = ((0x1161, 0x1176), (0x11A8, 0x11C3))  # vowels and final consonants join a syllable

# (left, right): names of ftfy's categories, and single characters, separated by spaces.
MOJIBAKE_PAIRS = (
    (
        "bad lower_accented upper_accented box start_punctuation end_punctuation currency numeric "
        "law lower_common upper_common",
        "bad",
    ),
    (
        "bad",
        "lower_accented upper_accented box start_punctuation end_punctuation currency numeric law",
    ),
    ("lower_accented lower_common box end_punctuation currency numeric", "upper_accented"),
    ("box end_punctuation currency numeric", "lower_accented"),
    ("lower_accented upper_accented lower_common box end_punctuation", "currency"),
    ("upper_accented box", "numeric law"),
    ("start_punctuation", "numeric"),
    ("end_punctuation currency numeric box", "start_punctuation"),
    ("lower_accented upper_accented", "start_punctuation end_punctuation"),
    (
        "lower_accented upper_accented currency numeric start_punctuation end_punctuation law",
        "box",
    ),
    ("box", "kaomoji end_punctuation"),
    ("upper_accented", "\N{DEGREE SIGN}"),
    (
        "\xc2 \xc3 \xce \xd0 \xd8 \xd9",
        "common bad lower_accented upper_accented \N{DEGREE SIGN} numeric start_punctuation "
        "end_punctuation currency",
    ),
    ("\xc2 \xc3", "SPACE"),
    ("\xd7 \xe0", "numeric"),
    (
        "\N{SQUARE ROOT} \N{ALMOST EQUAL TO}",
        "numeric end_punctuation currency common kaomoji",
    ),
    (
        "\N{SINGLE LOW-9 QUOTATION MARK}",
        "upper_accented lower_accented kaomoji",
    ),
    ("lower_common upper_common", "\N{CYRILLIC CAPITAL LETTER DJE}"),
    (
        "\u0412 \u0413 \u0420 \u0421 \u0392 \u0393 \u039e \u039f",
        "start_punctuation end_punctuation currency \N{DEGREE SIGN} \N{MICRO SIGN}",
    ),
    ("\N{LATIN CAPITAL LIGATURE OE} \N{LATIN SMALL LIGATURE OE}", "NOT_LATIN"),
)

U = np.uint64
ONES = U(0x0101010101010101)
HIGH = ONES * U(0x80)


def suspects(text: pa.StringArray) -> np.ndarray:
    """Returns uint8 (n,): the bits MOJIBAKE, CONTROL and COMPOSES of each text, 0 for a null."""
    offsets, data, valid = string_buffers(text)
    found = np.zeros(len(text), np.uint8)
    left, right = pair_bits()
    look(offsets, data, eight_bytes(data), valid, kinds(), left, right, found)
    return found


@cache
def kinds() -> np.ndarray:
    """Returns CONTROL and COMPOSES of each code point, uint8 (1114112,)."""
    table = np.zeros(0x110000, np.uint8)
    table[0x00:0x20] = CONTROL
    table[[0x09, 0x0A, 0x0D]] = 0
    table[0x7F:0xA0] = CONTROL
    table[list(FORMAT_CONTROLS)] = CONTROL
    characters = [chr(code) for code in range(LAST_COMPOSING)]
    combining = np.fromiter(map(unicodedata.combining, characters), np.uint8)
    table[np.flatnonzero(combining)] |= COMPOSES
    for character, decomposed in zip(
        characters, map(unicodedata.decomposition, characters), strict=True
    ):
        if not decomposed or decomposed[0] == "<":
            continue
        if not unicodedata.is_normalized("NFC", character):
            table[ord(character)] |= COMPOSES
        elif " " in decomposed:
            table[int(decomposed.split()[1], 16)] |= COMPOSES
    for first, last in HANGUL:
        table[first:last] |= COMPOSES
    return table


@cache
def pair_bits() -> tuple[np.ndarray, np.ndarray]:
    """Returns for each code point of the BMP the MOJIBAKE_PAIRS that it can begin, and end."""
    left, right = np.zeros(0x10000, np.uint32), np.zeros(0x10000, np.uint32)
    for bit, (before, after) in enumerate(MOJIBAKE_PAIRS):
        for names, table in ((before, left), (after, right)):
            for name in names.split():
                table[members(name)] |= 1 << bit
    return left, right


def members(name: str) -> np.ndarray:
    """Returns the code points of a category, in which "a-f" is a range, or of a character."""
    if name == "NOT_LATIN":
        letters = np.arange(0x10000) | 0x20
        return np.flatnonzero((letters < ord("a")) | (letters > ord("z")))
    if name == "SPACE":
        return np.array([0x20])
    spec = MOJIBAKE_CATEGORIES.get(name, name)
    codes = [ord(character) for character in spec]
    for i in range(1, len(spec) - 1):
        if spec[i] == "-":
            codes += range(ord(spec[i - 1]), ord(spec[i + 1]) + 1)
    return np.array([code for code in codes if code != ord("-")])


@kernel
def look(offsets, data, data8, valid, kinds, left, right, found):
    """Fills found for each text. Eight bytes at a time where they are printable ASCII."""
    for d in range(valid.size):
        if not valid[d]:
            continue
        bits = 0
        open_pairs = np.uint32(0)
        i = np.int64(offsets[d])
        stop = np.int64(offsets[d + 1])
        while i < stop:
            b = np.int64(data[i])
            if b < 0x80:
                if open_pairs == 0 and i + 8 <= stop:
                    block = data8[i]
                    if ((block - ONES * U(0x20)) | block | (block + ONES)) & HIGH == 0:
                        i += 8
                        continue
                bits |= kinds[b] | ((open_pairs & right[b]) != 0)
                open_pairs = np.uint32(0)
                i += 1
                continue
            size = 2 + (b >= 0xE0) + (b >= 0xF0)
            code = b & (0x3F >> (size - 1))
            for j in range(i + 1, min(i + size, stop)):
                code = (code << 6) | (np.int64(data[j]) & 63)
            i += size
            bits |= kinds[min(code, 0x10FFFF)]
            if code < 0x10000:
                bits |= ((open_pairs & right[code]) != 0) | (code < 0xA0)
                open_pairs = left[code]
            else:
                bits |= (open_pairs & right[0]) != 0
                open_pairs = np.uint32(0)
        found[d] = bits
