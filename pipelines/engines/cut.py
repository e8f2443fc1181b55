"""Cuts the spans of a span step's verdicts out of a batch."""

import numpy as np
import pyarrow as pa

from pipelines.document import id_strings
from pipelines.kernel import kernel
from pipelines.span_step import SPAN_LIST, SpanStep
from pipelines.text_buffers import string_buffers


def cut_batch(
    step: SpanStep, batch: pa.RecordBatch, rows: np.ndarray, verdicts: pa.Table
) -> tuple[pa.RecordBatch, dict[str, pa.Array]]:
    """Cuts spans out of a batch's texts.

    Args:
        step: whose verdicts they are.
        batch: documents.
        rows: int64 (n,), their places in the unit, ascending.
        verdicts: the unit's SPANS, in order of row and start.

    Returns:
        The batch with its texts cut, and the columns for the ledger.
    """
    named = verdicts.column("row").combine_chunks().to_numpy()
    low = np.searchsorted(named, rows[:1])
    high = np.searchsorted(named, rows[-1:], "right")
    mine = verdicts.slice(int(low.sum()), int((high - low).sum())).combine_chunks()
    row, start, end = (mine.column(name).to_numpy() for name in ("row", "start", "end"))
    stops = np.searchsorted(row, rows, "right")
    first = np.append(0, stops)
    text = batch.column("text")
    sizes = np.diff(np.append(0, np.cumsum(end - start))[first])
    matched = mine.column("matched").combine_chunks()
    spans = pa.StructArray.from_arrays(
        [pa.array(start), pa.array(end), _ids(matched)], fields=list(SPAN_LIST.value_type)
    )
    ledger = {
        f"{step.spans}_spans": pa.ListArray.from_arrays(pa.array(first, pa.int32()), spans),
        f"n_{step.spans}_spans": pa.array(np.diff(first), pa.int32()),
        f"{step.spans}_bytes": pa.array(sizes, pa.int64()),
    }
    if len(row):
        text = _without(text, first, start, end, sizes)
    return batch.set_column(batch.schema.get_field_index("text"), "text", text), ledger


def _ids(matched: pa.FixedSizeBinaryArray) -> pa.StringArray:
    words = np.frombuffer(matched.buffers()[1] or b"", ">u8").reshape(-1, 2)
    return id_strings(words[matched.offset : matched.offset + len(matched)])


def _without(
    text: pa.StringArray, first: np.ndarray, start: np.ndarray, end: np.ndarray, sizes: np.ndarray
) -> pa.StringArray:
    offsets, data, _ = string_buffers(text)  # what has no text was dropped before
    new = np.append(0, np.cumsum(np.diff(offsets) - sizes)).astype(np.int32)
    left = np.empty(new[-1], np.uint8)
    _copy(offsets, data, first, start, end, new, left)
    return pa.StringArray.from_buffers(len(text), pa.py_buffer(new), pa.py_buffer(left))


@kernel
def _copy(offsets, data, first, start, end, new, left):
    """Copies of each text n what lies outside its spans first[n] to first[n + 1]."""
    for n in range(new.size - 1):
        to = new[n]
        at = offsets[n]
        for span in range(first[n], first[n + 1]):
            stop = offsets[n] + start[span]
            left[to : to + stop - at] = data[at:stop]
            to += stop - at
            at = offsets[n] + end[span]
        stop = offsets[n + 1]
        left[to : to + stop - at] = data[at:stop]
