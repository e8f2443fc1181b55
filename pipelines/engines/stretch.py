"""A stretch: one batch of a work unit after one phase, with what was kept, dropped and learnt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.document import ERROR, KEY, document_ids, id_words
from pipelines.engines.cut import cut_batch
from pipelines.engines.job import Job
from pipelines.evaluate import evaluate, scatter
from pipelines.global_step import GlobalStep, PairStep
from pipelines.layout import (
    CLUSTER_SIZE,
    COMPONENT_ID,
    COMPONENT_SIZE,
    ERROR_RULE,
    FAILS,
    LEDGER_MATCH,
    SKIPPED,
)
from pipelines.readers.reader import Tally
from pipelines.span_step import SpanStep
from pipelines.step import Step

ROW = pa.field("row", pa.int64())
SAMPLE_SHARE = 0.01
"""Share of the dropped texts kept by --keep-dropped sample."""


@dataclass(frozen=True)
class Stretch:
    """One batch after one phase; every part has `row`, the document's place in its unit, first."""

    kept: pa.RecordBatch
    dropped: pa.RecordBatch
    ledger: pa.RecordBatch
    """One row for each document of the batch, in order."""


def read_stretches(job: Job, steps: Sequence[Step], unit: int, tally: Tally) -> Iterator[Stretch]:
    """Reads a unit from its source and runs the first phase's steps."""
    plan = job.plan.units[unit]
    row = 0
    for read in job.recipe.readers[plan.reader].read(plan.spans, tally):
        paths = pc.struct_field(read.column("origin"), "path").to_pylist()
        ids = document_ids(plan.source, paths, read.column(KEY).to_pylist())
        error = read.column(ERROR)
        batch = conform(read, job.layout.input, {"id": ids, "source": plan.source})
        if job.sample < 1:
            chosen = sampled(ids, job.sample)
            tally.records["not_sampled"] += batch.num_rows - chosen.true_count
            batch, error = batch.filter(chosen), error.filter(chosen)
        rows = np.arange(row, row + batch.num_rows)
        row += batch.num_rows
        gone_by = pc.binary_join_element_wise(
            ERROR_RULE, pc.replace_substring_regex(error, r"(?s):.*", ""), ""
        )
        ledger = {name: batch.column(name) for name in ("id", "source", "origin", "url")}
        yield _stretch(job, steps, batch, rows, gone_by, ledger | {"error": error})


def judged_stretch(
    job: Job, steps: Sequence[Step], step: GlobalStep, kept: pa.RecordBatch, verdicts: pa.Table
) -> Stretch:
    """Applies a global step's verdicts to a batch and runs the next phase's steps.

    Args:
        job: the job.
        steps: the row-local steps that follow.
        step: the global step.
        kept: what the phase before kept, `row` first.
        verdicts: the unit's verdicts, in order of row.
    """
    rows = kept.column(0).to_numpy()
    batch = kept.select(kept.schema.names[1:])
    if isinstance(step, SpanStep):
        batch, ledger = cut_batch(step, batch, rows, verdicts)
        return _stretch(job, steps, batch, rows, pa.nulls(len(rows), pa.string()), ledger)
    named = np.asarray(verdicts.column("row"))
    place = np.searchsorted(named, rows)
    found = place < len(named)
    found[found] = named[place[found]] == rows[found]
    taken = verdicts.take(pa.array(place, mask=~found)).combine_chunks()
    column = {name: taken.column(name).combine_chunks() for name in taken.column_names}
    dropped = pc.fill_null(column["dropped"], False)
    ledger = {name: column[name] for name in LEDGER_MATCH.names}
    ledger[FAILS + step.rule] = dropped
    ledger[step.rule + CLUSTER_SIZE] = pc.fill_null(column["cluster_size"], 1)
    if isinstance(step, PairStep):
        ledger[step.rule + SKIPPED] = pc.fill_null(column["skipped"], 0)
        ledger[step.rule + COMPONENT_ID] = column["component_id"]
        ledger[step.rule + COMPONENT_SIZE] = pc.fill_null(column["component_size"], 1)
    gone_by = pc.if_else(dropped, step.rule, pa.scalar(None, pa.string()))
    return _stretch(job, steps, batch, rows, gone_by, ledger)


def _stretch(
    job: Job,
    steps: Sequence[Step],
    batch: pa.RecordBatch,
    rows: np.ndarray,
    gone_by: pa.Array,
    ledger: dict[str, pa.Array],
) -> Stretch:
    """Evaluates what is not gone yet and puts all rows of the batch together again."""
    n = batch.num_rows
    alive = gone_by.is_null().to_numpy(zero_copy_only=False)
    places = np.flatnonzero(alive)
    result = evaluate(steps, batch if len(places) == n else batch.filter(pa.array(alive)))
    dropped_by = pc.coalesce(gone_by, scatter(n, places, result.dropped_by))
    gone = np.flatnonzero(~alive)
    dropped = [(gone, batch.take(pa.array(gone)))]
    dropped += [(places[at], p) for at, p in zip(result.dropped_rows, result.dropped, strict=True)]
    text_bytes = pc.fill_null(pc.binary_length(batch.column("text")), 0).to_numpy().astype(np.int64)
    text_bytes[places] = result.text_bytes
    ledger = {ROW.name: pa.array(rows, ROW.type)} | ledger
    ledger |= {"text_bytes": pa.array(text_bytes), "dropped_by": dropped_by}
    ledger |= {name: scatter(n, places, column) for name, column in result.signals.items()}
    kept_rows = pa.array(rows[places[result.kept_rows]], ROW.type)
    return Stretch(
        pa.RecordBatch.from_arrays(
            [kept_rows, *result.kept.columns], schema=pa.schema([ROW, *result.kept.schema])
        ),
        _dropped(job, rows, dropped, dropped_by),
        pa.RecordBatch.from_pydict(ledger),
    )


def _dropped(
    job: Job,
    rows: np.ndarray,
    parts: Sequence[tuple[np.ndarray, pa.RecordBatch]],
    dropped_by: pa.Array,
) -> pa.RecordBatch:
    """Joins the dropped documents, in order of row, with as much text as is to be kept."""
    schema = pa.schema([ROW, *job.layout.dropped])
    batches = []
    for places, part in parts:
        given = {"dropped_by": dropped_by.take(pa.array(places))}
        if job.keep_dropped != "all":
            share = SAMPLE_SHARE if job.keep_dropped == "sample" else 0.0
            keep = sampled(part.column("id"), share)
            given["text"] = pc.if_else(keep, part.column("text"), pa.scalar(None, pa.string()))
        given[ROW.name] = pa.array(rows[places], ROW.type)
        batches.append(conform(part, schema, given))
    return one_batch(pa.Table.from_batches(batches, schema).sort_by(ROW.name))


def sampled(ids: pa.StringArray, share: float) -> pa.BooleanArray:
    """Returns true for a share of the ids, chosen by the id itself (ids are keyed hashes)."""
    return pa.array(id_words(ids)[:, 1] < np.uint64(int(share * (2**64 - 1))))


def conform(
    batch: pa.RecordBatch, schema: pa.Schema, given: dict[str, pa.Array | str] | None = None
) -> pa.RecordBatch:
    """Returns the batch with exactly the schema's columns: given ones, its own, else nulls."""
    columns = []
    for field in schema:
        value = (given or {}).get(field.name)
        if isinstance(value, str):
            column = pa.repeat(pa.scalar(value, field.type), batch.num_rows)
        elif value is not None:
            column = value
        elif field.name in batch.schema.names:
            column = batch.column(field.name)
        else:
            column = pa.nulls(batch.num_rows, field.type)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Returns a table as one batch, also an empty one."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
