"""The stage of a PieceStep, between map_unit and write_unit: a range of hashes is decided."""

import numpy as np

from pipelines.engines.job import Job
from pipelines.engines.mark_files import Marks, document_order, marks_between, numbered_runs
from pipelines.engines.phase_files import save_verdicts
from pipelines.span_step import SPANS, PieceStep


def piece_bucket(job: Job, phase: int, bucket: int, buckets: int) -> None:
    """Decides all pieces whose hash falls into a bucket, with the marks of all units."""
    target = job.verdicts(phase) / f"{bucket:05d}.arrow"
    if target.exists():
        return
    step = job.global_step(phase)
    assert isinstance(step, PieceStep)
    folders = [job.phase_folder(phase, unit) for unit in range(len(job.plan.units))]
    found = list(numbered_runs(folders))
    if not found:  # no unit kept a document
        save_verdicts(target, SPANS.empty_table())
        return
    parts = [marks_between(run, bucket, buckets) for _, run in found]
    marks = Marks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    source = np.repeat(np.arange(len(parts), dtype=np.int32), [len(p.document) for p in parts])
    del parts
    copies = _of_several(marks.hash)
    marks, source = Marks(*(column[copies] for column in marks)), source[copies]
    width = 2 + np.load(found[0][1] / "rank.npy", mmap_mode="r").shape[1]
    order = np.empty((len(source), width), np.uint64)
    unit, row = np.empty(len(source), np.int32), np.empty(len(source), np.int64)
    for number in np.unique(source):
        mine = np.flatnonzero(source == number)
        unit[mine], run = found[number]
        order[mine], row[mine] = document_order(run, marks.document[mine])
    save_verdicts(target, step.decide(marks.hash, order, marks.place, unit, row))


def _of_several(hashes: np.ndarray) -> np.ndarray:
    """Returns the places of the hashes that are there more than once, ascending."""
    order = np.lexsort(hashes.T)
    same = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    several = np.zeros(len(order), bool)
    several[1:] |= same
    several[:-1] |= same
    return np.sort(order[several])
