"""Runs row-local steps over one batch and says of every document what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.layout import FAILS, NO_TEXT
from pipelines.step import Cut, Editor, Filter, Step, broken

BLANK_PREFIX = 64  # code points looked at before a whole text is trimmed


@dataclass(frozen=True)
class Evaluated:
    """What came of a batch.

    Attributes:
        kept: the documents that broke no rule, with all their columns.
        kept_rows: their places in the batch.
        dropped: the others, with the columns that they had when they were cut.
        dropped_rows: their places in the batch.
        dropped_by: for every document of the batch the first rule that it broke, or null.
        text_bytes: for every document of the batch the UTF-8 bytes of its text at that point.
        signals: for every document of the batch a column for each signal and for each
            `fails_<rule>`; null where a cut came first.
    """

    kept: pa.RecordBatch
    kept_rows: np.ndarray
    dropped: list[pa.RecordBatch]
    dropped_rows: list[np.ndarray]
    dropped_by: pa.Array
    text_bytes: np.ndarray
    signals: dict[str, pa.Array]


def evaluate(steps: Sequence[Step], batch: pa.RecordBatch) -> Evaluated:
    """Runs the steps; every rule is asked of every document that reaches it."""
    n = batch.num_rows
    rows = np.arange(n)
    names: list[str] = []
    first = np.full(n, -1)
    text_bytes = np.zeros(n, np.int64)
    columns: dict[str, tuple[np.ndarray, pa.Array]] = {}
    dropped: list[pa.RecordBatch] = []
    dropped_rows: list[np.ndarray] = []

    def cut(current: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
        text = current.column("text")
        first[rows[_blank(text)]] = len(names)
        text_bytes[rows] = pc.fill_null(pc.binary_length(text), 0).to_numpy()
        gone = first[rows] >= 0
        if not gone.any():
            return current, rows
        dropped.append(current.filter(pa.array(gone)))
        dropped_rows.append(rows[gone])
        return current.filter(pa.array(~gone)), rows[~gone]

    for step in steps:
        if isinstance(step, Cut):
            batch, rows = cut(batch, rows)
            names.append(NO_TEXT)
            continue
        batch = run_step(step, batch)
        if isinstance(step, (Filter, Editor)):
            for name in step.adds.names:
                if name != "text":
                    columns[name] = (rows, batch.column(name))
        if isinstance(step, Filter):
            for rule in step.rules:
                mask = broken(rule, step, batch)
                columns[FAILS + rule.name] = (rows, pa.array(mask))
                fresh = rows[mask & (first[rows] < 0)]
                first[fresh] = len(names)
                names.append(rule.name)
    batch, rows = cut(batch, rows)
    names.append(NO_TEXT)
    dropped_by = pa.array(names, pa.string()).take(pa.array(first, mask=first < 0))
    signals = {name: scatter(n, *column) for name, column in columns.items()}
    return Evaluated(batch, rows, dropped, dropped_rows, dropped_by, text_bytes, signals)


def scatter(n: int, rows: np.ndarray, values: pa.Array) -> pa.Array:
    """Returns an array of n with values[i] at rows[i] and null elsewhere; rows ascend."""
    if len(rows) == n:
        return values
    places = np.zeros(n, np.int64)
    places[rows] = np.arange(len(rows))
    absent = np.ones(n, bool)
    absent[rows] = False
    return values.take(pa.array(places, mask=absent))


def run_step(step: Step, before: pa.RecordBatch) -> pa.RecordBatch:
    """Runs a step and holds it to its word: one row in, one row out, the declared columns."""
    replaced = [n for n in step.adds.names if n in before.schema.names and n not in step.reads]
    after = step(before.drop_columns(replaced) if replaced else before)
    if after.num_rows != before.num_rows:
        raise RuntimeError(
            f"{step.name} made {after.num_rows} rows of {before.num_rows}; a step maps one to one"
        )
    for field in step.adds:
        if (
            field.name not in after.schema.names
            or after.schema.field(field.name).type != field.type
        ):
            raise RuntimeError(
                f"{step.name} declares column {field.name!r} of type {field.type} and did not "
                f"add it; it returned: {', '.join(after.schema.names)}"
            )
    return after


def _blank(text: pa.Array) -> np.ndarray:
    """Returns true where the text is null, empty or white space only."""
    start = pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(text, 0, BLANK_PREFIX))
    blank = pc.fill_null(pc.equal(pc.binary_length(start), 0), True).to_numpy(zero_copy_only=False)
    blank = blank.copy()
    longer = np.flatnonzero(blank & (pc.fill_null(pc.binary_length(text), 0).to_numpy() > 0))
    if len(longer):
        trimmed = pc.binary_length(pc.utf8_trim_whitespace(text.take(pa.array(longer))))
        blank[longer] = trimmed.to_numpy() == 0
    return blank
