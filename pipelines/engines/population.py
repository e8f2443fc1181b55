"""Who takes part in linking, numbered through all units; and whom a snapshot touches.

A run against an index walks only components that differ from what they were: those with a document
that is new, or that takes part now and did not before, or that did and does not any more (a ghost:
an earlier step drops it now). One out of which an earlier step cuts other spans than before is both
a new one and a ghost. Ghosts take part in linking, so that the documents that they were
linked to are found, and in nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.atomic import written_folder
from pipelines.engines.job import Job
from pipelines.engines.key_files import load_array
from pipelines.engines.phase_files import unit_verdicts
from pipelines.span_step import SPANS, SpanStep


@dataclass(frozen=True)
class Population:
    """The n documents of a phase and g ghosts, which are numbered after them.

    Attributes:
        first: int64 (units + 1,), the number of each unit's first document.
        touched: bool (n + g,), whether the document's component has to be walked.
        ghost_unit: int32 (g,), ascending.
        ghost_index: int64 (g,), the place among the keys that the unit had before.
    """

    first: np.ndarray
    touched: np.ndarray
    ghost_unit: np.ndarray
    ghost_index: np.ndarray

    @classmethod
    def of(cls, job: Job, phase: int) -> "Population":
        """Returns what `populate` wrote."""
        folder = _folder(job, phase)
        return cls(*(np.load(folder / f"{name}.npy") for name in cls.__dataclass_fields__))

    def parts(
        self, job: Job, phase: int, name: str, column: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields an array of the keys, or a column of it, of all documents and ghosts in pieces.

        Each comes with the number of its first document.
        """
        chosen = slice(None) if column is None else (slice(None), column)
        for unit, number in enumerate(self.first[:-1].tolist()):
            yield number, load_array(job.phase_folder(phase, unit), name)[chosen]
        before = job.before()
        for unit, place in zip(*np.unique(self.ghost_unit, return_index=True), strict=True):
            index = self.ghost_index[self.ghost_unit == unit]
            array = load_array(before.phase_folder(phase, int(unit)), name)[chosen]
            yield int(self.first[-1] + place), array[index]


def _folder(job: Job, phase: int) -> Path:
    return job.links(phase) / "population"


def populate(job: Job, phase: int) -> None:
    """Numbers the documents of a phase and says whom the run touches."""
    folder = _folder(job, phase)
    if folder.is_dir():
        return
    before = job.before()
    touched: list[np.ndarray] = []
    ghost_unit, ghost_index = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for unit in range(len(job.plan.units)):
        now = load_array(job.phase_folder(phase, unit), "row")
        if unit >= job.first:
            touched.append(np.ones(len(now), bool))
        elif before.address(phase, unit) == job.address(phase, unit):
            touched.append(np.zeros(len(now), bool))
        else:
            was = load_array(before.phase_folder(phase, unit), "row")
            rewritten = _rewritten(job, phase, unit)
            touched.append(~np.isin(now, was) | np.isin(now, rewritten))
            gone = np.flatnonzero(~np.isin(was, now) | np.isin(was, rewritten))
            ghost_index.append(gone)
            ghost_unit.append(np.full(len(gone), unit, np.int32))
    first = np.append(0, np.cumsum([len(part) for part in touched])).astype(np.int64)
    units = np.concatenate(ghost_unit)
    found = Population(
        first,
        np.concatenate([*touched, np.ones(len(units), bool)]),
        units,
        np.concatenate(ghost_index),
    )
    with written_folder(folder) as temporary:
        for name, array in vars(found).items():
            np.save(temporary / f"{name}.npy", array)


def _rewritten(job: Job, phase: int, unit: int) -> np.ndarray:
    """Returns the rows of a unit out of which earlier phases cut other spans than before."""
    rows = [np.zeros(0, np.int64)]
    for earlier in range(phase):
        if not isinstance(job.global_step(earlier), SpanStep):
            continue
        tables = (unit_verdicts(of.verdicts(earlier), unit, SPANS) for of in (job, job.before()))
        spans = [np.stack([t.column(n) for n in ("row", "start", "end")], axis=1) for t in tables]
        span, number = np.unique(np.concatenate(spans), axis=0, return_counts=True)
        rows.append(span[number == 1, 0])
    return np.concatenate(rows)
