"""Where the lines and the paragraphs of texts begin: a pass over the bytes."""

import numpy as np

from pipelines.kernel import kernel


def piece_bounds(
    offsets: np.ndarray, data: np.ndarray, paragraphs: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Parts texts that lie one after the other into lines or paragraphs, all of their bytes.

    Args:
        offsets: int32 (n + 1,), the texts.
        data: uint8.
        paragraphs: else lines.

    Returns:
        int32 (m + 1,) bounds of the pieces and int32 (m,), the text of each; a text has one or
        more.
    """
    number = _part(offsets, data, paragraphs, np.zeros(0, np.int32), np.zeros(0, np.int32))
    bounds, document = np.empty(number + 1, np.int32), np.empty(number, np.int32)
    _part(offsets, data, paragraphs, bounds, document)
    bounds[number] = offsets[-1]
    return bounds, document


@kernel
def _part(offsets, data, paragraphs, bounds, document):
    """Returns the number of pieces; writes where each begins if there is room."""
    number = 0
    for n in range(offsets.size - 1):
        some_text = False  # in the piece so far
        blank = False  # whether a blank line ended it
        i = offsets[n]
        first = True
        while first or i < offsets[n + 1]:
            start = i
            empty = True
            while i < offsets[n + 1]:
                b = data[i]
                i += 1
                if b == 0x0A:
                    break
                if b != 0x20 and b != 0x09 and b != 0x0D:
                    empty = False
            if first or not paragraphs or (blank and not empty):
                if bounds.size:
                    bounds[number] = start
                    document[number] = n
                number += 1
                some_text = False
            some_text = some_text or not empty
            blank = some_text and empty
            first = False
    return number
