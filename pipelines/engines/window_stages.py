"""The stages of a WindowStep, between map_unit and write_unit.

    repeated_bucket   a range of hashes: those of marks that occur more than once
    gather_unit       the text around such marks of a unit, each region once a run
    window_part       a range of hashes: regions of all units compared, runs of duplicate windows
    cut_unit          a unit's runs from all ranges, joined and trimmed: verdicts

Equal windows have equal marks, so ranges of hashes are independent, and how many there are changes
nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.atomic import written, written_folder
from pipelines.dedup.span_bounds import cut_spans
from pipelines.dedup.windows import PLACE_BITS, Occurrences, duplicate_runs
from pipelines.document import id_bytes
from pipelines.engines.job import Job
from pipelines.engines.key_files import hash_slice
from pipelines.engines.mark_files import marks_between, numbered_runs, runs
from pipelines.engines.phase_files import kept_batches, save_verdicts, unit_verdicts
from pipelines.engines.region_files import RegionSlice, RegionWriter, distinct
from pipelines.span_step import SPANS, Marks, WindowStep
from pipelines.text_buffers import string_buffers

HASH_BYTES = 24
"""Peak of `repeated_bucket` for each mark."""
REGION_BYTES, REPEATED_BYTES = 14, 150
"""Peak of `window_part` for each byte of regions and for each mark."""


def window_step(job: Job, phase: int) -> WindowStep:
    """Returns the WindowStep that ends a phase."""
    step = job.global_step(phase)
    if not isinstance(step, WindowStep):
        raise ValueError(f"{step.name} does not compare windows")
    return step


def _folders(job: Job, phase: int) -> list[Path]:
    return [job.phase_folder(phase, unit) for unit in range(len(job.plan.units))]


def repeated_bucket(job: Job, phase: int, bucket: int, buckets: int) -> None:
    """Finds the hashes of one of equal ranges that marks of all units have more than once."""
    target = job.regions(phase) / "repeated" / f"{bucket:05d}.npy"
    if target.exists():
        return
    hashes = [np.zeros(0, np.uint64)]
    for _, run in numbered_runs(_folders(job, phase)):
        stored = np.load(run / "hash.npy", mmap_mode="r")[:, 0]
        hashes.append(np.array(stored[hash_slice(stored, bucket, buckets)]))
    found = np.sort(np.concatenate(hashes))
    again = found[1:][found[1:] == found[:-1]]
    with written(target) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.unique(again))


def gather_unit(job: Job, phase: int, unit: int, buckets: int) -> tuple[int, int]:
    """Writes the regions of a unit's marks that occur again; returns marks and bytes of regions."""
    target = job.regions(phase) / "units" / f"{unit:05d}"
    if not target.is_dir():
        source = job.phase_folder(phase, unit)
        batches = kept_batches(source)
        with written_folder(target) as temporary:
            sums = np.zeros(2, np.int64)
            for run in runs(source):
                writer = RegionWriter(window_step(job, phase).window)
                documents = len(np.load(run / "row.npy", mmap_mode="r"))
                _add_batches(writer, _repeated(job, phase, run, buckets), batches, documents)
                sums += writer.save(temporary / run.name)
            np.save(temporary / "sums.npy", sums)
    marks, size = np.load(target / "sums.npy").tolist()
    return marks, size


def _repeated(job: Job, phase: int, run: Path, buckets: int) -> Marks:
    """Returns the marks of a run whose hash occurs again, in order of document and place."""
    parts = []
    for bucket in range(buckets):
        marks = marks_between(run, bucket, buckets)
        known = np.load(job.regions(phase) / "repeated" / f"{bucket:05d}.npy", mmap_mode="r")
        place = np.searchsorted(known, marks.hash[:, 0])
        again = place < len(known)
        again[again] = known[place[again]] == marks.hash[again, 0]
        parts.append(Marks(*(column[again] for column in marks)))
    marks = Marks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    order = np.lexsort((marks.place[:, 0], marks.document))
    return Marks(*(column[order] for column in marks))


def _add_batches(
    writer: RegionWriter, marks: Marks, batches: Iterator[pa.RecordBatch], documents: int
) -> None:
    """Gives the writer the marks of a run with their texts, batch by batch."""
    done = 0
    while done < documents:
        batch = next(batches)
        low, high = np.searchsorted(marks.document, [done, done + batch.num_rows])
        mine = Marks(*(column[low:high] for column in marks))
        offsets, data, _ = string_buffers(batch.column("text"))
        writer.add(mine, offsets[mine.document - done].astype(np.int64), data)
        done += batch.num_rows


def window_part(job: Job, phase: int, part: int, parts: int) -> None:
    """Finds the duplicate windows whose marks' hashes are in one of equal ranges."""
    target = job.regions(phase) / "runs" / f"{part:05d}.arrow"
    if target.exists():
        return
    folders = [job.regions(phase) / "units" / f"{u:05d}" for u in range(len(job.plan.units))]
    slices = [
        RegionSlice(unit, run, job.phase_folder(phase, unit) / run.name, part, parts)
        for unit, run in numbered_runs(folders)
        if (run / "hash.npy").exists()
    ]
    table = SPANS.empty_table()
    if slices:
        table = _compared(slices, window_step(job, phase).window)
    save_verdicts(target, table)


def _compared(slices: list[RegionSlice], window: int) -> pa.Table:
    """Returns the runs of duplicate windows as SPANS, which may overlap."""
    regions, region = distinct(slices)
    line = np.concatenate([each.order for each in slices])
    by_place = np.lexsort(line.T[::-1])
    number = np.empty(len(line), np.int64)
    number[by_place] = np.arange(len(line))
    first_document = np.cumsum([0, *(len(each.order) for each in slices)])
    document = np.concatenate(
        [each.document + first for each, first in zip(slices, first_document, strict=False)]
    )
    start = np.concatenate([each.start for each in slices])
    found = Occurrences(region, number[document] << PLACE_BITS | start)
    occurrence, start, end, matched = duplicate_runs(regions, found, window)
    of = document[occurrence]
    unit = np.repeat([each.unit for each in slices], np.diff(first_document))[of]
    row = np.concatenate([each.row for each in slices])[of]
    ids = id_bytes(line[by_place[matched], -2:])
    return pa.table([unit.astype(np.int32), row, start, end, ids], schema=SPANS)


def cut_unit(job: Job, phase: int, unit: int) -> None:
    """Joins a unit's runs of duplicate windows and trims them to where the step may cut."""
    target = job.verdicts(phase) / f"{unit:05d}.arrow"
    if target.exists():
        return
    covered = unit_verdicts(job.regions(phase) / "runs", unit, SPANS).combine_chunks()
    row, start, end = (covered.column(name).to_numpy() for name in ("row", "start", "end"))
    matched = covered.column("matched").combine_chunks().dictionary_encode()
    source = matched.indices.to_numpy()
    bounds = window_step(job, phase).trimmed_to
    parts = [SPANS.empty_table()]
    for batch in kept_batches(job.phase_folder(phase, unit)) if len(row) else ():
        rows = batch.column(0).to_numpy()
        first = np.append(row.searchsorted(rows[:1]), row.searchsorted(rows, "right"))
        offsets, data, _ = string_buffers(batch.column("text"))
        text, low, high, of = cut_spans(offsets, data, first, start, end, source, bounds)
        ids = matched.dictionary.take(pa.array(of))
        columns = [np.full(len(text), unit, np.int32), rows[text], low, high, ids]
        parts.append(pa.table(columns, schema=SPANS))
    save_verdicts(target, pa.concat_tables(parts))
