"""Text clean-up: what was broken on the way to us is repaired, nothing else is touched."""

import re
import unicodedata
from dataclasses import dataclass

import ftfy
import numpy as np
import pyarrow as pa

from pipelines.clean_kernels import suspects
from pipelines.step import Editor

CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufff9-\ufffb]+")
MAX_ROUNDS = 8
"""A repair can uncover another one; real text needs one round, a made-up one three."""

SPANS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64())]))


@dataclass(frozen=True)
class CleanText(Editor):
    """Repairs mojibake, composes to NFC and removes control characters.

    Tabs and line ends stay as they are. Adds mojibake_repaired and nfc_changed (bool) and
    removed_spans (byte offsets of the removed control characters in the text as it was when they
    were removed, that is after the encoding repair). A null text stays null, with nulls beside it.
    Source: ftfy (Speer 2019, doi:10.5281/zenodo.2591652); NFC: Unicode Standard Annex 15.
    """

    version = 1
    adds = pa.schema(
        [
            ("text", pa.string()),
            ("mojibake_repaired", pa.bool_()),
            ("nfc_changed", pa.bool_()),
            ("removed_spans", SPANS),
        ]
    )
    libraries = ("ftfy",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with clean text; a batch that needs nothing keeps its buffers."""
        text = batch.column("text")
        nulls = text.is_null().to_numpy(zero_copy_only=False)
        mojibake, controls, composes = suspects(text)
        repaired, changed = np.zeros(len(text), bool), np.zeros(len(text), bool)
        spans: dict[int, list[dict[str, int]]] = {}
        edited: dict[int, str] = {}
        for row in np.flatnonzero(mojibake | controls | composes).tolist():
            before = text[row].as_py()
            after, repaired[row], changed[row], removed = clean(before)
            if after != before:
                edited[row] = after
            if removed:
                spans[row] = [{"start": start, "end": end} for start, end in removed]
        if edited:
            text = _replaced(text, edited)
        listed = [None if null else spans.get(row, []) for row, null in enumerate(nulls.tolist())]
        batch = batch.set_column(batch.schema.get_field_index("text"), "text", text)
        batch = batch.append_column("mojibake_repaired", pa.array(repaired, mask=nulls))
        batch = batch.append_column("nfc_changed", pa.array(changed, mask=nulls))
        return batch.append_column("removed_spans", pa.array(listed, SPANS))


def clean(text: str) -> tuple[str, bool, bool, list[tuple[int, int]]]:
    """Cleans one text until nothing changes any more.

    Returns:
        The text, whether its encoding was repaired, whether NFC changed it, and the byte spans of
        the removed control characters.
    """
    repaired, composed, spans = False, False, []
    for _ in range(MAX_ROUNDS):
        fixed = ftfy.fix_encoding(text)
        bare, removed = _without_controls(fixed)
        after = unicodedata.normalize("NFC", bare)
        repaired, composed = repaired or fixed != text, composed or after != bare
        spans += removed
        if after == text:
            break
        text = after
    return text, repaired, composed, spans


def _without_controls(text: str) -> tuple[str, list[tuple[int, int]]]:
    spans, last, end = [], 0, 0
    for match in CONTROLS.finditer(text):
        start = end + len(text[last : match.start()].encode())
        end = start + len(match[0].encode())
        last = match.end()
        spans.append((start, end))
    return (CONTROLS.sub("", text), spans) if spans else (text, spans)


def _replaced(text: pa.StringArray, edited: dict[int, str]) -> pa.StringArray:
    """Returns the array with some values replaced, copying the others in whole runs."""
    pieces, last = [], 0
    for row, value in edited.items():
        pieces += [text.slice(last, row - last), pa.array([value], pa.string())]
        last = row + 1
    return pa.concat_arrays([*pieces, text.slice(last)])
