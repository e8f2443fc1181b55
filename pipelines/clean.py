"""Text clean-up: what was broken on the way to us is repaired, nothing else is touched.

As FineWeb's and Nemotron-CC's clean-up it leaves line ends, quotes, ligatures, widths and spaces as
their authors wrote them: a model should know the characters that it will meet.
"""

import re
import unicodedata
from dataclasses import dataclass, field

import ftfy
import numpy as np
import pyarrow as pa

from pipelines.clean_kernels import COMPOSES, CONTROL, MOJIBAKE, suspects
from pipelines.step import Editor
from pipelines.text_buffers import replace_values

# The set comes first, so that the search for it is fast; a terminal's colour code goes as a whole.
CONTROLS = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufff9-\ufffb](?:(?<=\x1b)\[[0-9;?]*[A-Za-z])?"
)
# White-space controls stand between lines and words, so they are replaced and not removed.
REPLACEMENTS = dict.fromkeys("\x0b\x0c\x1c\x1d\x1e\x85", "\n") | {"\x1f": " "}
MAX_ROUNDS = 8
"""A repair can uncover another one; real text needs one round, a made-up one three."""

SPANS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64())]))


@dataclass(frozen=True)
class CleanText(Editor):
    """Repairs mojibake, removes control characters and composes to NFC.

    Tabs and line ends stay as they are. Control characters are C0, C1, DEL, U+FEFF and U+FFF9 to
    U+FFFB; those that are white space become a newline or a space, so that no words are joined.

    Adds mojibake_repaired and nfc_changed (bool) and removed_spans: the byte offsets of the control
    characters in the text as it was when they were removed, that is after the encoding repair. A
    null text stays null, with nulls beside it.

    Source: ftfy (Speer 2019, doi:10.5281/zenodo.2591652); NFC: Unicode Standard Annex 15.
    """

    version = 2
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
        suspicion = suspects(text)
        rows = np.flatnonzero(suspicion)
        texts = text.take(pa.array(rows)).to_pylist()
        edits = {
            row: clean(value, found)
            for row, value, found in zip(
                rows.tolist(), texts, suspicion[rows].tolist(), strict=True
            )
        }
        changed = {row: edit.text for row, edit in edits.items() if edit.changed}
        if changed:
            text = replace_values(text, changed)
        nulls = text.is_null().to_numpy(zero_copy_only=False)
        repaired, composed = np.zeros(len(text), bool), np.zeros(len(text), bool)
        counts = np.zeros(len(text) + 1, np.int64)
        for row, edit in edits.items():
            repaired[row], composed[row] = edit.repaired, edit.composed
            counts[row + 1] = len(edit.spans)
        spans = [span for edit in edits.values() for span in edit.spans]
        ends = np.array(spans, np.int64).reshape(-1, 2)
        removed = pa.ListArray.from_arrays(
            pa.array(np.cumsum(counts), pa.int32()),
            pa.StructArray.from_arrays([ends[:, 0], ends[:, 1]], fields=list(SPANS.value_type)),
            type=SPANS,
            mask=pa.array(nulls),
        )
        batch = batch.set_column(batch.schema.get_field_index("text"), "text", text)
        batch = batch.append_column("mojibake_repaired", pa.array(repaired, mask=nulls))
        batch = batch.append_column("nfc_changed", pa.array(composed, mask=nulls))
        return batch.append_column("removed_spans", removed)


@dataclass
class Edit:
    """A text and what was done to it."""

    text: str
    changed: bool = False
    repaired: bool = False
    composed: bool = False
    spans: list[tuple[int, int]] = field(default_factory=list)


def clean(text: str, suspicion: int) -> Edit:
    """Returns the text cleaned until nothing changes any more.

    Args:
        text: What to clean.
        suspicion: Its bits from `suspects`.
    """
    edit = Edit(text)
    for _ in range(MAX_ROUNDS):
        before = edit.text
        if suspicion & MOJIBAKE:
            fixed = _repaired(before)
            if fixed != before:  # it may hold anything now
                edit.text, edit.repaired, suspicion = fixed, True, CONTROL | COMPOSES
        if suspicion & CONTROL:
            edit.text, spans = _without_controls(edit.text)
            edit.spans += spans
        if not unicodedata.is_normalized("NFC", edit.text):
            edit.text, edit.composed = unicodedata.normalize("NFC", edit.text), True
        if edit.text == before:
            break
        edit.changed = True
        suspicion = int(suspects(pa.array([edit.text], pa.string()))[0])
        if not suspicion:
            break
    return edit


def _repaired(text: str) -> str:
    """Returns the text with ftfy run on each line that may be mojibake, as ftfy.fix_text does.

    A line is repaired only if all of it can be, so one line in another encoding would otherwise
    keep the whole text broken, and ftfy is slow.
    """
    lines = text.split("\n")
    for i in np.flatnonzero(suspects(pa.array(lines, pa.string())) & MOJIBAKE).tolist():
        lines[i] = ftfy.fix_encoding(lines[i])
    return "\n".join(lines)


def _without_controls(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text without its control characters and their byte spans."""
    pieces, spans, last, end = [], [], 0, 0
    for match in CONTROLS.finditer(text):
        piece = text[last : match.start()]
        start = end + len(piece.encode())
        end = start + len(match[0].encode())
        last = match.end()
        pieces += [piece, REPLACEMENTS.get(match[0], "")]
        spans.append((start, end))
    return "".join([*pieces, text[last:]]), spans
