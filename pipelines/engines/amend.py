"""What a run against an index says of earlier documents.

    retractions   documents that were kept and are dropped now, as the dropped files have them
    revivals      documents that were dropped and are kept now, as the data files have them
    redropped     documents that another rule drops now than before, or with another text
    amendments    the whole ledger row of every earlier document of which anything has changed

A document that stays and has another text now, because a span step cuts other spans out of it, is
in both: with its old text among the retractions, where no rule drops it, with its new one among the
revivals. So earlier - retractions + revivals + new documents is what one run over all would have
kept.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.atomic import written
from pipelines.dataset import file_entry, write_json
from pipelines.engines.job import Job
from pipelines.engines.stages import finished_stretches, parquet_writer
from pipelines.engines.stretch import Stretch, conform
from pipelines.readers.reader import Tally

KINDS: tuple[str, ...] = ("retractions", "revivals", "redropped", "amendments")
UNCHANGING = ("id", "source", "origin", "url", "error")


def amend_unit(job: Job, unit: int) -> dict[str, Any]:
    """Compares an earlier unit as it was with what it is now, and writes what has changed.

    Returns:
        The record of the unit: files with rows and sha256.
    """
    target = job.record(unit)
    if target.exists():
        return json.loads(target.read_text("utf-8"))
    last, before = len(job.recipe.phases()) - 1, job.before()
    found: dict[str, list[pa.RecordBatch]] = {kind: [] for kind in KINDS}
    if before.address(last, unit) != job.address(last, unit):
        stretches = (finished_stretches(of, unit, Tally()) for of in (before, job))
        for old, new in zip(*stretches, strict=True):
            for kind, batches in _changes(old, new).items():
                found[kind] += batches
    schemas = dict.fromkeys(KINDS, job.layout.dropped)
    schemas |= {"revivals": job.layout.data, "amendments": job.layout.ledger}
    files = []
    for kind, batches in found.items():
        path = job.out / kind / f"{unit:05d}.parquet"
        rows = [conform(batch, schemas[kind]) for batch in batches if batch.num_rows]
        path.unlink(missing_ok=True)
        if not rows:
            continue
        with written(path) as temporary, parquet_writer(temporary, schemas[kind]) as writer:
            for batch in rows:
                writer.write_batch(batch)
        files.append(file_entry(job.out, path, sum(batch.num_rows for batch in rows)))
    record = {"files": files}
    write_json(target, record)
    return record


def _changes(old: Stretch, new: Stretch) -> dict[str, list[pa.RecordBatch]]:
    """Returns what has changed of one batch of documents, by kind."""
    was, now = (pc.is_null(of.ledger.column("dropped_by")) for of in (old, new))
    ids = new.ledger.column("id")
    gone, back = ids.filter(pc.and_not(was, now)), ids.filter(pc.and_not(now, was))
    by_other = pc.not_equal(*(of.ledger.column("dropped_by") for of in (old, new)))
    still_dropped = pc.is_in(ids, _rewritten(old.dropped, new.dropped))
    redropped = ids.filter(pc.or_(pc.fill_null(by_other, False), still_dropped))
    rewritten = _rewritten(old.kept, new.kept)
    changed = pa.array(_different(old.ledger, new.ledger))
    return {
        "retractions": [_of_ids(new.dropped, gone), _of_ids(old.kept, rewritten)],
        "revivals": [_of_ids(new.kept, pa.concat_arrays([back, rewritten]))],
        "redropped": [_of_ids(new.dropped, redropped)],
        "amendments": [new.ledger.filter(changed)],
    }


def _rewritten(old: pa.RecordBatch, new: pa.RecordBatch) -> pa.StringArray:
    """Returns the ids of documents that are in both batches with another text."""
    place = pc.index_in(new.column("id"), old.column("id"))
    before = old.column("text").take(place)
    unlike = pc.fill_null(pc.not_equal(before, new.column("text")), False)
    unlike = pc.or_(unlike, pc.xor(pc.is_null(before), pc.is_null(new.column("text"))))
    return new.column("id").filter(pc.and_(unlike, pc.is_valid(place)))


def _of_ids(batch: pa.RecordBatch, ids: pa.Array) -> pa.RecordBatch:
    return batch.filter(pc.is_in(batch.column("id"), ids))


def _different(old: pa.RecordBatch, new: pa.RecordBatch) -> np.ndarray:
    """Returns true where any column of two ledger batches of the same documents differs."""
    differs = np.zeros(new.num_rows, bool)
    for name in new.schema.names:
        one, other = old.column(name), new.column(name)
        if name in UNCHANGING or one.equals(other):
            continue
        if pa.types.is_nested(one.type):
            pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
            differs |= np.array([a != b for a, b in pairs], bool)
            continue
        unlike = pc.fill_null(pc.not_equal(one, other), False)
        unlike = pc.or_(unlike, pc.xor(pc.is_null(one), pc.is_null(other)))
        differs |= unlike.to_numpy(zero_copy_only=False)
    return differs
