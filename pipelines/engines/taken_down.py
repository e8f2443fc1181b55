"""Taking documents out of what the first phase has made, and finding those that have to go.

It happens between the first phase's row-local steps and the first global step, in the same way
whether the documents were just read or lie in an index: a document taken down takes part in no
global step, and all that stays of it is its id, source, place and URL.

    find_listed    which documents of an earlier unit a list names
    find_equal     which were dropped as equal to each other
    find_sets      the sets by which a PairStep compares some documents
    find_similar   which are similar to one of these
    find_texts     the hashes of some documents' texts
    find_same      which documents have one of these
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engines.job import Job
from pipelines.engines.pair_stages import pair_step
from pipelines.engines.phase_files import kept_batches, ledger_batches, unit_verdicts
from pipelines.engines.stretch import ROW, Stretch, conform, one_batch
from pipelines.global_step import Comparison, GroupStep
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


class DocumentSet(NamedTuple):
    """A document as a PairStep compares it."""

    component: str
    document_id: str
    values: np.ndarray


def find_equal(job: Job, unit: int, ids: pa.Array) -> list[tuple[str, str, str]]:
    """Returns pairs of documents one of which a GroupStep dropped in favour of the other.

    Args:
        job: a job.
        unit: an earlier unit.
        ids: one of a pair is of these.

    Returns:
        (dropped id, id that it was dropped for, the rule).
    """
    found = []
    for phase, (_, step) in enumerate(job.recipe.phases()[:-1]):
        if not isinstance(step, GroupStep):
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


def find_sets(job: Job, unit: int, phase: int, ids: pa.Array) -> list[DocumentSet]:
    """Returns the sets of those of some documents that a PairStep saw with others."""
    return [
        DocumentSet(*entry)
        for batch, component in _compared(job, unit, phase)
        for entry in _sets(job, phase, batch, component, pc.is_in(batch.column("id"), ids))
    ]


def find_similar(
    job: Job, unit: int, phase: int, sets: Sequence[DocumentSet]
) -> list[tuple[str, str]]:
    """Returns documents that are similar to one with a set, by the step's own test, and to which.

    Only documents of the same component are compared: others share no key, not even through
    documents between them.
    """
    by_component: dict[str, list[DocumentSet]] = {}
    for entry in sets:
        by_component.setdefault(entry.component, []).append(entry)
    wanted, found = pa.array(list(by_component), pa.string()), []
    for batch, component in _compared(job, unit, phase):
        mine = pc.is_in(component, wanted)
        for name, document_id, values in _sets(job, phase, batch, component, mine):
            similar = (
                other.document_id
                for other in by_component[name]
                if _similar(pair_step(job, phase).comparison(), values, other.values)
            )
            found += [(document_id, of) for of in similar][:1]
    return found


def _compared(job: Job, unit: int, phase: int) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
    """Yields the documents that reach a PairStep, with their components (null: alone)."""
    before = job.before()
    verdicts = unit_verdicts(before.verdicts(phase), unit).combine_chunks()
    for kept in kept_batches(before.phase_folder(phase, unit), mapped=True):
        places = pc.index_in(kept.column(0), verdicts.column("row").combine_chunks())
        yield kept, verdicts.column("component_id").combine_chunks().take(places)


def _sets(
    job: Job, phase: int, batch: pa.RecordBatch, component: pa.Array, chosen: pa.Array
) -> Iterator[tuple[str, str, np.ndarray]]:
    chosen = pc.and_(chosen, component.is_valid())
    mine = batch.filter(chosen)
    if not mine.num_rows:
        return
    offsets, values = pair_step(job, phase).sets(mine)
    names = zip(component.filter(chosen).to_pylist(), mine.column("id").to_pylist(), strict=True)
    for number, (name, document_id) in enumerate(names):
        yield name, document_id, values[offsets[number] : offsets[number + 1]].copy()


def _similar(comparison: Comparison, one: np.ndarray, other: np.ndarray) -> bool:
    """Says whether two documents are similar; for containment, whether either holds the other."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    whole = len(one) + len(other) - shared
    if comparison.containment:
        whole = min(len(one), len(other))
    return shared * comparison.denominator >= comparison.numerator * whole > 0


def find_texts(job: Job, unit: int, ids: pa.Array) -> list[str]:
    """Returns the hashes of the texts that documents had before the first global step."""
    found: set[str] = set()
    for kept in kept_batches(_folder(job, unit), mapped=True):
        mine = kept.filter(pc.is_in(kept.column("id"), ids))
        found.update(text_hashes(mine.column("text")).to_pylist())
    return sorted(found)


def find_same(job: Job, unit: int) -> list[str]:
    """Returns the documents that have a text of the job's list."""
    found: list[str] = []
    for kept in kept_batches(_folder(job, unit), mapped=True):
        equal = pa.array(_has_text(job.takedown, kept))
        found += kept.column("id").filter(equal).to_pylist()
    return found


def _folder(job: Job, unit: int) -> Path:
    return job.before().phase_folder(0, unit)
