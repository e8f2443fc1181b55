"""Taking documents out of what the first phase has made, and finding those that have to go.

It happens between the first phase's row-local steps and the first global step, in the same way
whether the documents were just read or lie in an index: a document taken down takes part in no
global step, and all that stays of it is its id, source, place and URL.

    find_listed    which documents of an earlier unit a list names
    find_related   which are kept or dropped in favour of each other
    find_texts     the hashes of some documents' texts
    find_equal     which documents have one of these
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engines.job import Job
from pipelines.engines.phase_files import kept_batches, ledger_batches, unit_verdicts
from pipelines.engines.stretch import ROW, Stretch, conform, one_batch
from pipelines.global_step import GroupStep
from pipelines.layout import TAKEN_DOWN
from pipelines.takedown_list import Takedown, text_hashes

STAYS = (ROW.name, "id", "source", "origin", "url")
"""What its rows still say of a document that was taken down, beside the rule."""


def without(job: Job, stretch: Stretch) -> Stretch:
    """Takes the documents that the job's list names out of a stretch of the first phase."""
    takedown, ledger, kept = job.takedown, stretch.ledger, stretch.kept
    gone = _named(takedown, ledger)
    rows = ledger.column(ROW.name).to_numpy()
    if takedown.texts and kept.num_rows:
        equal = _has_text(takedown, kept)
        gone |= np.isin(rows, kept.column(ROW.name).to_numpy()[equal])
    if not gone.any():
        return stretch
    taken = pa.array(rows[gone])
    columns = {}
    for name, column in zip(ledger.schema.names, ledger.columns, strict=True):
        if name not in STAYS:  # a take with nulls works for every type, nested ones too
            column = column.take(pa.array(np.arange(len(gone)), mask=gone))
        columns[name] = column
    columns["text_bytes"] = pc.fill_null(columns["text_bytes"], 0)
    rule = pa.scalar(TAKEN_DOWN, pa.string())
    columns["dropped_by"] = pc.if_else(pa.array(gone), rule, columns["dropped_by"])
    traces = ledger.filter(pa.array(gone)).select(list(STAYS))
    dropped = [
        _without_rows(stretch.dropped, taken),
        conform(traces, stretch.dropped.schema, {"dropped_by": TAKEN_DOWN}),
    ]
    return Stretch(
        _without_rows(kept, taken),
        one_batch(pa.Table.from_batches(dropped).sort_by(ROW.name)),
        pa.RecordBatch.from_pydict(columns, schema=ledger.schema),
    )


def _named(takedown: Takedown, ledger: pa.RecordBatch) -> np.ndarray:
    by_id = pc.is_in(ledger.column("id"), takedown.id_array)
    by_url = pc.is_in(ledger.column("url"), takedown.url_array)
    return pc.or_(by_id, by_url).to_numpy(zero_copy_only=False)


def _has_text(takedown: Takedown, kept: pa.RecordBatch) -> np.ndarray:
    found = pc.is_in(text_hashes(kept.column("text")), takedown.text_array)
    return found.to_numpy(zero_copy_only=False)


def _without_rows(batch: pa.RecordBatch, rows: pa.Array) -> pa.RecordBatch:
    return batch.filter(pc.invert(pc.is_in(batch.column(ROW.name), rows)))


def find_listed(job: Job, unit: int) -> dict[str, Any]:
    """Returns which `ids` and `urls` of the job's list a unit holds; `fresh` are not gone yet."""
    found: dict[str, set[str]] = {"ids": set(), "urls": set(), "fresh": set()}
    for ledger in ledger_batches(_folder(job, unit)):
        mine = ledger.filter(pa.array(_named(job.takedown, ledger)))
        fresh = pc.fill_null(pc.not_equal(mine.column("dropped_by"), TAKEN_DOWN), True)
        found["ids"].update(mine.column("id").to_pylist())
        found["urls"].update(mine.column("url").to_pylist())
        found["fresh"].update(mine.column("id").filter(fresh).to_pylist())
    return found


def find_related(job: Job, unit: int, ids: pa.Array, equal: bool) -> list[tuple[str, str, str]]:
    """Returns pairs of documents one of which was dropped in favour of the other.

    Args:
        job: a job.
        unit: an earlier unit.
        ids: one of a pair is of these.
        equal: whether they have to be equal, or similar.

    Returns:
        (dropped id, id that it was dropped for, the rule).
    """
    found = []
    for phase, (_, step) in enumerate(job.recipe.phases()[:-1]):
        if step is None or isinstance(step, GroupStep) != equal:
            continue
        verdicts = unit_verdicts(job.before().verdicts(phase), unit)
        verdicts = verdicts.filter(verdicts.column("dropped"))
        for ledger in ledger_batches(_folder(job, unit)):
            places = pc.index_in(ledger.column(ROW.name), verdicts.column("row").combine_chunks())
            for_whom = verdicts.column("matched_id").combine_chunks().take(places)
            mine = pc.or_(pc.is_in(ledger.column("id"), ids), pc.is_in(for_whom, ids))
            mine = pc.and_(mine, pc.is_valid(for_whom))
            pairs = (column.filter(mine).to_pylist() for column in (ledger.column("id"), for_whom))
            found += [(dropped, kept, step.rule) for dropped, kept in zip(*pairs, strict=True)]
    return found


def find_texts(job: Job, unit: int, ids: pa.Array) -> list[str]:
    """Returns the hashes of the texts that documents had before the first global step."""
    found: set[str] = set()
    for kept in kept_batches(_folder(job, unit), mapped=True):
        mine = kept.filter(pc.is_in(kept.column("id"), ids))
        found.update(text_hashes(mine.column("text")).to_pylist())
    return sorted(found)


def find_equal(job: Job, unit: int) -> list[str]:
    """Returns the documents that have a text of the job's list."""
    found: list[str] = []
    for kept in kept_batches(_folder(job, unit), mapped=True):
        equal = pa.array(_has_text(job.takedown, kept))
        found += kept.column("id").filter(equal).to_pylist()
    return found


def _folder(job: Job, unit: int) -> Path:
    return job.before().phase_folder(0, unit)
