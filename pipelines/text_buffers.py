"""Arrow string arrays as numpy views: what compiled code reads, without a copy."""

import numpy as np
import pyarrow as pa


def string_buffers(text: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns offsets int32 (n + 1,), bytes uint8, validity bool (n,) of a string or binary array.

    Offsets and bytes are views of the Arrow buffers; a slice has its own part of the offsets.

    Raises:
        ValueError: the array is of another type.
    """
    if text.type not in (pa.string(), pa.binary()):
        raise ValueError(f"text column: type is {text.type}, wanted string; cast it in the reader")
    if text.null_count:
        valid = text.is_valid().to_numpy(zero_copy_only=False)
    else:
        valid = np.ones(len(text), bool)
    _, offsets, data = text.buffers()
    if offsets is None or not offsets.size:
        return np.zeros(len(text) + 1, np.int32), np.zeros(0, np.uint8), valid
    bounds = np.frombuffer(offsets, np.int32, len(text) + 1, 4 * text.offset)
    if data is None or not data.size:
        return bounds, np.zeros(0, np.uint8), valid
    return bounds, np.frombuffer(data, np.uint8), valid


def eight_bytes(data: np.ndarray) -> np.ndarray:
    """Returns a view whose element i is data[i:i + 8] as a little-endian number.

    It is unaligned and overlaps itself: one load instruction where eight would be needed.
    """
    if data.size < 8:
        return np.ndarray((0,), "<u8", np.zeros(8, np.uint8), 0, (1,))
    return np.ndarray((data.size - 7,), "<u8", data, 0, (1,))


def same_memory(a: pa.Array, b: pa.Array) -> bool:
    """True if both arrays are the same part of the same buffers; both are alive, so it is safe."""
    if (len(a), a.offset, a.type) != (len(b), b.offset, b.type):
        return False
    for left, right in zip(a.buffers(), b.buffers(), strict=True):
        if (left and left.address) != (right and right.address):
            return False
    return True


def replace_values(text: pa.StringArray, changed: dict[int, str]) -> pa.StringArray:
    """Returns the array with some values replaced, copying the others in whole runs.

    Rows are in ascending order.
    """
    pieces, last = [], 0
    for row, value in changed.items():
        pieces += [text.slice(last, row - last), pa.array([value], pa.string())]
        last = row + 1
    return pa.concat_arrays([*pieces, text.slice(last)])
