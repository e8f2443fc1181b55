"""The stages of a run, as functions of a job and one item, the same for every engine.

    map_unit      a work unit through the steps up to a global step: documents, ledger and keys
    group_bucket  the keys of one bucket, from all units: verdicts (else pair_, vector_stages.py)
    write_unit    a work unit with the last verdicts, through the last steps: the final files

A stage's output appears under its final name only when it is whole, so an engine may kill and
repeat it, and what exists need not be made again. Everything goes in batches of about 8 MB of text.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.atomic import begin_flush, remove_folder, written, written_folder
from pipelines.dataset import file_entry, write_json
from pipelines.engines.job import Job
from pipelines.engines.key_files import KeyWriter, bucket_slice, load_keys, merge_keys
from pipelines.engines.mark_files import MarkWriter
from pipelines.engines.phase_files import kept_batches, phase_batches, save_verdicts, unit_verdicts
from pipelines.engines.stretch import (
    ROW,
    Stretch,
    conform,
    judged_stretch,
    one_batch,
    read_stretches,
)
from pipelines.engines.taken_down import without
from pipelines.evaluate import run_step, scatter
from pipelines.global_step import GroupStep, PairStep, verdict_schema
from pipelines.layout import TAKEN_DOWN
from pipelines.readers.reader import Tally
from pipelines.removal import RemovalWriter, removal_file
from pipelines.span_step import SpanStep
from pipelines.statistics import Statistics
from pipelines.step import Step

PARTS = ("kept", "dropped", "ledger")


def warm_up(job: Job) -> None:
    """Runs every step on one short document, which loads or compiles all kernels."""
    schema = job.layout.input
    given = {"id": pa.array(["0" * 32]), "text": pa.array(["A word.\n\nAnd a \u2026 line."])}
    columns = {f.name: pa.nulls(1, f.type) for f in schema} | given
    batch = pa.RecordBatch.from_pydict(columns, schema=schema)
    for steps, step in job.recipe.phases():
        for part in steps:
            batch = run_step(part, batch)
        if isinstance(step, SpanStep):
            step.marks(batch)
        elif step is not None:
            step.keys(batch)
        if isinstance(step, PairStep):
            step.sets(batch)


def map_unit(job: Job, phase: int, unit: int) -> dict[str, Any]:
    """Runs a phase that ends in a global step over a unit.

    Returns:
        The record of the unit: documents, keys, records by type, digests of the bytes read.
    """
    if job.record(unit).exists():  # it has been written, and needs no documents any more
        return json.loads(job.record(unit).read_text("utf-8"))
    folder = job.phase_folder(phase, unit)
    if folder.is_dir():
        return json.loads((folder / "record.json").read_text("utf-8"))
    step = job.global_step(phase)
    tally = Tally()
    documents = 0
    with written_folder(folder) as temporary:
        marks = isinstance(step, SpanStep)
        keys = MarkWriter(temporary, step) if marks else KeyWriter(temporary, step)
        with ExitStack() as stack:
            sinks: dict[str, pa.OSFile] = {}
            writers: dict[str, pa.ipc.RecordBatchFileWriter] = {}
            for stretch in _stretches(job, phase, unit, tally):
                documents += stretch.ledger.num_rows
                for part in PARTS:
                    batch = getattr(stretch, part)
                    if part not in writers:
                        sink = pa.OSFile(str(temporary / f"{part}.arrow"), "wb")
                        sinks[part] = stack.enter_context(sink)
                        writer = pa.ipc.new_file(sink, batch.schema)
                        writers[part] = stack.enter_context(writer)
                    start = sinks[part].tell()
                    writers[part].write_batch(batch)
                    begin_flush(sinks[part].fileno(), start, sinks[part].tell())
                keys.add(stretch.kept)
            keys.close()
        record = {"documents": documents, "keys": keys.count}
        record |= {"records": dict(tally.records), "digests": tally.digests}
        write_json(temporary / "record.json", record)
    return record


def group_bucket(job: Job, phase: int, bucket: int, buckets: int) -> None:
    """Decides all groups whose hash falls into a bucket, with the keys of all units."""
    target = job.verdicts(phase) / f"{bucket:05d}.arrow"
    if target.exists():
        return
    units = range(len(job.plan.units))
    parts = [
        bucket_slice(load_keys(job.phase_folder(phase, unit)), bucket, buckets) for unit in units
    ]
    unit = np.repeat(np.array(units, np.int32), [len(part.row) for part in parts])
    step = job.global_step(phase)
    if not isinstance(step, GroupStep):
        raise ValueError(f"{step.name} does not decide on groups")
    save_verdicts(target, step.decide(merge_keys(parts), unit))


def write_unit(job: Job, unit: int) -> dict[str, Any]:
    """Runs the last phase over a unit and writes its data, ledger and dropped files.

    Returns:
        The record of the unit: files with rows and sha256, records by type, digests, statistics.
    """
    target = job.record(unit)
    if target.exists():
        return json.loads(target.read_text("utf-8"))
    last = len(job.recipe.phases()) - 1
    schemas = {"data": job.layout.data, "ledger": job.layout.ledger, "dropped": job.layout.dropped}
    paths = {kind: job.out / kind / f"{unit:05d}.parquet" for kind in schemas}
    rows = dict.fromkeys(schemas, 0)
    statistics, tally = Statistics(), Tally()
    with ExitStack() as stack:
        writers = {}
        for kind, path in paths.items():
            temporary = stack.enter_context(written(path))
            writers[kind] = stack.enter_context(parquet_writer(temporary, schemas[kind]))
        removal = stack.enter_context(RemovalWriter(removal_file(job, unit)))
        for stretch in finished_stretches(job, unit, tally):
            statistics.add(stretch.ledger)
            removal.add(stretch.kept, _by_rules(job, stretch.dropped))
            batches = {"data": stretch.kept, "ledger": stretch.ledger, "dropped": stretch.dropped}
            for kind, batch in batches.items():
                rows[kind] += batch.num_rows
                if batch.num_rows:
                    writers[kind].write_batch(conform(batch, schemas[kind]))
    record: dict[str, Any] = {"records": dict(tally.records), "digests": tally.digests}
    if last > 0:
        record = json.loads((job.phase_folder(0, unit) / "record.json").read_text("utf-8"))
    record["files"] = [file_entry(job.out, path, rows[kind]) for kind, path in paths.items()]
    record["statistics"] = statistics.counts
    write_json(target, record)
    if not job.is_indexed:  # here, so that workers share the work and the disk has room early
        for phase in range(last):
            remove_folder(job.phase_folder(phase, unit))
    return record


def _by_rules(job: Job, dropped: pa.RecordBatch) -> pa.RecordBatch:
    """Leaves out what was taken down: no limit on what rules may drop is about that."""
    if not job.takedown:
        return dropped
    return dropped.filter(pc.not_equal(dropped.column("dropped_by"), TAKEN_DOWN))


def finished_stretches(job: Job, unit: int, tally: Tally) -> Iterator[Stretch]:
    """Yields a unit's documents after all phases, batch by batch as they were read.

    Args:
        job: a job whose verdicts are complete.
        unit: the work unit.
        tally: counts what the reader reads, if the unit has not been mapped.
    """
    last = len(job.recipe.phases()) - 1
    earlier = [phase_batches(job.phase_folder(phase, unit)) for phase in range(last)]
    for stretch in _stretches(job, last, unit, tally):
        before = [next(phase) for phase in earlier]
        ledger = _join_ledgers(job, [*(ledger for _, ledger in before), stretch.ledger])
        parts = [*(dropped for dropped, _ in before), stretch.dropped]
        dropped = one_batch(pa.Table.from_batches(parts).sort_by(ROW.name))
        yield Stretch(stretch.kept, dropped, ledger)


def _stretches(job: Job, phase: int, unit: int, tally: Tally) -> Iterator[Stretch]:
    steps, _ = job.recipe.phases()[phase]
    if phase == 0:
        first = _stored_stretches if job.is_rewritten(unit) else read_stretches
        for stretch in first(job, steps, unit, tally):
            yield without(job, stretch) if job.takedown else stretch
        return
    step = job.global_step(phase - 1)
    verdicts = unit_verdicts(job.verdicts(phase - 1), unit, verdict_schema(step))
    for kept in kept_batches(job.phase_folder(phase - 1, unit)):
        yield judged_stretch(job, steps, step, kept, verdicts)


def _stored_stretches(
    job: Job, steps: Sequence[Step], unit: int, tally: Tally
) -> Iterator[Stretch]:
    """Yields an earlier unit as `read_stretches` once gave it: its source may be gone."""
    folder = job.before().phase_folder(0, unit)
    record = json.loads((folder / "record.json").read_text("utf-8"))
    tally.records.update(record["records"])
    tally.digests.update(record["digests"])
    for kept, parts in zip(kept_batches(folder), phase_batches(folder), strict=True):
        yield Stretch(kept, *parts)


def _join_ledgers(job: Job, ledgers: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Joins the ledger batches of all phases by row; a later phase has fewer rows."""
    first = ledgers[0]
    columns = dict(zip(first.schema.names, first.columns, strict=True))
    rows = first.column(0).to_numpy()
    for later in ledgers[1:]:
        places = rows.searchsorted(later.column(0).to_numpy())
        for name, column in zip(later.schema.names[1:], later.columns[1:], strict=True):
            spread = scatter(len(rows), places, column)
            if name in columns:  # a later phase knows better: dropped_by, text_bytes, a match
                spread = pc.coalesce(spread, columns[name])
            columns[name] = spread
    return conform(pa.RecordBatch.from_pydict(columns), job.layout.ledger)


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer as the Hub likes it: an edited dataset shares most chunks with its old version."""
    return pq.ParquetWriter(
        path, schema, compression="zstd", write_page_index=True, use_content_defined_chunking=True
    )
