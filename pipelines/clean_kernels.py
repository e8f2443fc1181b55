"""Which texts need a repair: one pass over the bytes, so that the others cost next to nothing.

Three repairs are each far slower than this pass (ftfy 4 MB/s), and few documents need one.
"""

import unicodedata
from functools import cache

import numba
import numpy as np
import pyarrow as pa

from pipelines.text_buffers import string_buffers

# What a code point can be; the values are bits.
LEAD = 1  # how a UTF-8 lead byte looks when it was decoded as Latin-1, cp1252, cp1251, ...
TAIL = 2  # how a UTF-8 continuation byte looks then
CONTROL = 4
COMPOSES = 8  # not in NFC by itself, or only perhaps beside its neighbours

CODE_PAGES = (
    "latin-1",
    "cp1250",
    "cp1251",
    "cp1252",
    "cp1253",
    "cp1254",
    "cp1257",
    "cp437",
    "mac_roman",
)
KEPT_CONTROLS = "\t\n\r"
FORMAT_CONTROLS = (0xFEFF, 0xFFF9, 0xFFFA, 0xFFFB)  # byte order mark, interlinear annotation
LAST_COMPOSING = 0x30000


def suspects(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns three boolean (n,) arrays: may be mojibake, holds controls, may not be in NFC."""
    offsets, data, valid = string_buffers(text)
    flags = np.zeros(len(text), np.uint8)
    _scan(offsets, data, valid, _classes(), flags)
    return (flags & LEAD) > 0, (flags & CONTROL) > 0, (flags & COMPOSES) > 0


@cache
def _classes() -> np.ndarray:
    classes = np.zeros(0x110000, np.uint8)
    for page in CODE_PAGES:
        for bit, first, last in ((LEAD, 0xC2, 0xF4), (TAIL, 0x80, 0xBF)):
            for byte in range(first, last + 1):
                character = bytes([byte]).decode(page, "ignore")
                if character:
                    classes[ord(character)] |= bit
    controls = [*range(0x20), *range(0x7F, 0xA0), *FORMAT_CONTROLS]
    for code in controls:
        if chr(code) not in KEPT_CONTROLS:
            classes[code] |= CONTROL
    for code in range(0xA0, LAST_COMPOSING):
        character = chr(code)
        if unicodedata.combining(character):
            classes[code] |= COMPOSES
        elif decomposed := unicodedata.decomposition(character):
            if not unicodedata.is_normalized("NFC", character):
                classes[code] |= COMPOSES
            elif decomposed[0] != "<" and " " in decomposed:
                classes[int(decomposed.split()[1], 16)] |= COMPOSES
    classes[0x1161:0x1176] |= COMPOSES  # Hangul vowels and final consonants join a syllable
    classes[0x11A8:0x11C3] |= COMPOSES
    return classes


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scan(offsets, data, valid, classes, flags):
    for n in range(valid.size):
        if not valid[n]:
            continue
        found = 0
        lead = False
        i = offsets[n]
        stop = offsets[n + 1]
        while i < stop:
            b = np.int64(data[i])
            if b < 0x80:
                found |= classes[b] & CONTROL
                lead = False
                i += 1
                continue
            size = 2 + (b >= 0xE0) + (b >= 0xF0)
            code = b & (0x3F >> (size - 1))
            for j in range(1, size):
                if i + j < stop:
                    code = (code << 6) | (np.int64(data[i + j]) & 63)
            kind = classes[min(code, 0x10FFFF)]
            found |= kind & (CONTROL | COMPOSES)
            if lead and kind & TAIL:
                found |= LEAD
            lead = kind & LEAD != 0
            i += size
        flags[n] = found
