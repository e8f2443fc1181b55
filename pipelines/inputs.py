"""Inputs: which bytes a dataset was made of, and whether they are still the same."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.atomic import written
from pipelines.engines.job import Job
from pipelines.plan import Plan
from pipelines.readers.reader import Span, span_hash

INPUTS = "inputs.parquet"
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("path", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("size", pa.int64()),  # of the whole file
        ("digest", pa.string()),  # content_hash of the bytes [start, stop)
        ("unit", pa.int32()),  # from 0 on in each dataset
    ]
)


def write_inputs(job: Job, records: list[dict[str, Any]]) -> Path:
    """Writes one row for each span of the plan, with the hash of its bytes as they were read."""
    own = Plan(job.plan.units[job.first :], ())
    rows = [
        row | {"digest": records[row["unit"]]["digests"][_name(span)]} for span, row in _rows(own)
    ]
    path = job.out / INPUTS
    with written(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary, compression="zstd")
    return path


def changed_inputs(out: Path, plan: Plan, verify: bool) -> str:
    """Returns in words what differs between a dataset's inputs and a plan; empty where nothing.

    Args:
        out: a finished dataset.
        plan: what would be read now.
        verify: compare the bytes too, not only paths and sizes.
    """
    table = pq.read_table(out / INPUTS)
    digests = table.column("digest").to_pylist()
    before = table.drop_columns(["digest"]).to_pylist()
    now = list(_rows(plan))
    if before != [row for _, row in now]:
        old = {(row["source"], row["path"]) for row in before}
        new = {(row["source"], row["path"]) for _, row in now}
        for word, paths in (("new", new - old), ("gone", old - new)):
            if paths:
                source, path = min(paths)
                return f"{len(paths)} files are {word}, for example {path!r} of source {source}"
        return "files have other sizes"
    if verify:
        for (span, _), digest in zip(now, digests, strict=True):
            if span_hash(span) != digest:
                return f"{span.file.path!r} of source {span.file.source} holds other bytes"
    return ""


def inputs_of(out: Path) -> list[dict[str, Any]]:
    """Returns the rows of a finished dataset's inputs."""
    return pq.read_table(out / INPUTS).to_pylist()


def forget_changed_units(job: Job) -> None:
    """Hashes again what an unfinished run has read and removes the units whose bytes differ."""
    for index in job.own_units():
        unit = job.plan.units[index]
        folder = job.phase_folder(0, index)
        records = [path for path in (folder / "record.json", job.record(index)) if path.exists()]
        if not records:
            continue
        digests = json.loads(records[0].read_text("utf-8"))["digests"]
        if any(span_hash(span) != digests.get(_name(span)) for span in unit.spans):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(job.plan_folder(), ignore_errors=True)


def _rows(plan: Plan) -> Iterator[tuple[Span, dict[str, Any]]]:
    for index, unit in enumerate(plan.units):
        for span in unit.spans:
            row = {"source": unit.source, "path": span.file.path, "start": span.start}
            row |= {"stop": span.stop, "size": span.file.size, "unit": index}
            yield span, row


def _name(span: Span) -> str:
    return f"{span.file.path}:{span.start}-{span.stop}"
