"""The stages of a PairStep, between map_unit and write_unit.

    link           the keys of all units: who is to be compared with whom (one task, in memory)
    set_unit       the sets of a unit's candidates
    walk_package   some components of candidates, walked in order: verdicts

The link is the one place where something that grows with the dataset is held in memory; it is
refused where it does not fit.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.atomic import written_folder
from pipelines.dedup.links import BYTES_PER_DOCUMENT, Candidates, candidates
from pipelines.dedup.walk_kernels import walk
from pipelines.document import id_strings
from pipelines.engines.job import Job
from pipelines.engines.key_files import load_keys
from pipelines.engines.phase_files import kept_batches, save_verdicts
from pipelines.global_step import VERDICTS, Keys, PairStep

SET_COPIES = 3
"""Walking a package takes about this many times the bytes of its sets."""


def check_memory(name: str, num_keys: int, memory: int) -> None:
    """Refuses what `link` could not hold.

    Raises:
        RuntimeError: the keys of all documents take more than the memory of one worker.
    """
    needed = num_keys * BYTES_PER_DOCUMENT
    if needed > memory:
        raise RuntimeError(
            f"{name}: linking {num_keys:,} documents takes {needed >> 20} MiB, a worker has "
            f"{memory >> 20} MiB. Give more --memory or fewer --workers."
        )


def link(job: Job, phase: int) -> None:
    """Finds the candidates among the documents of all units."""
    folder = job.links(phase)
    if folder.is_dir():
        return
    units = range(len(job.plan.units))
    parts = [load_keys(job.phase_folder(phase, unit)) for unit in units]
    counts = [len(part.row) for part in parts]
    unit = np.repeat(np.array(units, np.int32), counts)
    none = np.zeros((sum(counts), 0), np.uint64)
    rank, ids, row = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("rank", "id", "row")
    )
    order = Keys(none, rank, ids, row).order()
    del rank
    bands = (
        np.concatenate([part.group[:, band] for part in parts])
        for band in range(parts[0].group.shape[1])
    )
    found = candidates(order, unit, row, ids, bands)
    with written_folder(folder) as temporary:
        found.save(temporary)


def set_unit(job: Job, phase: int, unit: int) -> int:
    """Writes the sets of a unit's candidates and returns how many values they have together."""
    folder = job.sets(phase, unit)
    if folder.is_dir():
        return len(np.load(folder / "values.npy", mmap_mode="r"))
    found = Candidates.load(job.links(phase))
    return save_sets(job, phase, unit, np.sort(found.row[found.unit == unit]))


def save_sets(job: Job, phase: int, unit: int, rows: np.ndarray) -> int:
    """Writes the sets of some of a unit's documents; returns how many values they have together.

    Args:
        job: the job.
        phase: that ends in a PairStep.
        unit: the work unit.
        rows: int64, ascending, the documents' places in the unit.
    """
    step = pair_step(job, phase)
    sizes: list[np.ndarray] = [np.zeros(1, np.int64)]
    values: list[np.ndarray] = [np.zeros(0, np.uint64)]
    for batch in kept_batches(job.phase_folder(phase, unit)) if len(rows) else ():
        chosen = np.flatnonzero(np.isin(batch.column(0).to_numpy(), rows, assume_unique=True))
        offsets, part = step.sets(batch.take(pa.array(chosen)))
        sizes.append(np.diff(offsets))
        values.append(part)
    whole = np.concatenate(values)
    with written_folder(job.sets(phase, unit)) as temporary:
        np.save(temporary / "rows.npy", rows)
        np.save(temporary / "offsets.npy", np.cumsum(np.concatenate(sizes)))
        np.save(temporary / "values.npy", whole)
    return len(whole)


def walk_package(job: Job, phase: int, package: int, packages: int, memory: int) -> None:
    """Walks the components of one package and writes their verdicts.

    Raises:
        RuntimeError: the sets of one component take more than the memory.
    """
    target = job.verdicts(phase) / f"{package:05d}.arrow"
    if target.exists():
        return
    step = pair_step(job, phase)
    found = Candidates.load(job.links(phase))
    folders = {unit: job.sets(phase, unit) for unit in range(len(job.plan.units))}
    starts, sizes = set_places(folders, found.unit, found.row)
    part = _part(found.component, sizes, package, packages)
    needed = int(sizes[part].sum()) * 8 * SET_COPIES
    if needed > memory:
        raise RuntimeError(
            f"{step.name}: a group of {part.stop - part.start:,} documents that may be alike takes "
            f"{needed >> 20} MiB, a worker has {memory >> 20} MiB. Give more --memory or fewer "
            f"--workers, or more num_rows, which links fewer documents."
        )
    unit = np.asarray(found.unit[part])
    values = gather_sets(folders, unit, starts[part], sizes[part])
    member_offsets = np.asarray(found.member_offsets[part.start : part.stop + 1])
    members = np.asarray(found.members[member_offsets[0] : member_offsets[-1]])
    least = members.min() if len(members) else 0
    num_groups = int(members.max() - least + 1) if len(members) else 0
    anchors = np.empty(len(unit), np.int64)
    similarity = walk(
        np.append(0, np.cumsum(sizes[part])),
        values,
        member_offsets - member_offsets[0],
        members - least,
        num_groups,
        *step.least_similarity(),
        anchors,
    )
    save_verdicts(target, _verdicts(found, part, anchors, similarity))


def pair_step(job: Job, phase: int) -> PairStep:
    """Returns the PairStep that ends a phase."""
    step = job.global_step(phase)
    if not isinstance(step, PairStep):
        raise ValueError(f"{step.name} does not compare pairs")
    return step


def set_places(
    folders: dict[int, Path], unit: np.ndarray, row: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each document's set begins in its unit's file, and its size."""
    starts, sizes = np.zeros((2, len(row)), np.int64)
    for number, folder in folders.items():
        mine = np.flatnonzero(unit == number)
        place = np.load(folder / "rows.npy").searchsorted(row[mine])
        offsets = np.load(folder / "offsets.npy")
        starts[mine] = offsets[place]
        sizes[mine] = offsets[place + 1] - offsets[place]
    return starts, sizes


def _part(component: np.ndarray, sizes: np.ndarray, package: int, packages: int) -> slice:
    """Returns the candidates of a package: whole components, with about as many values each."""
    weight = np.bincount(component, weights=sizes)
    before = np.cumsum(weight) - weight
    share = np.minimum(before * packages // max(1, weight.sum()), packages - 1)
    start, stop = share[component].searchsorted([package, package + 1])
    return slice(int(start), int(stop))


def gather_sets(
    folders: dict[int, Path], unit: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Returns the sets of documents, one after the other."""
    stops = np.cumsum(sizes)
    values = np.empty(int(sizes.sum()), np.uint64)
    for number in np.unique(unit):
        stored = np.load(folders[int(number)] / "values.npy", mmap_mode="r")
        for place in np.flatnonzero(unit == number):
            size, start = sizes[place], starts[place]
            values[stops[place] - size : stops[place]] = stored[start : start + size]
    return values


def _verdicts(
    found: Candidates, part: slice, anchors: np.ndarray, similarity: np.ndarray
) -> pa.Table:
    """Returns VERDICTS on the documents that were dropped and on those that they are like."""
    dropped = anchors >= 0
    heads = np.where(dropped, anchors, np.arange(len(anchors)))
    size = np.bincount(heads, minlength=len(anchors))[heads]
    named = np.flatnonzero(size > 1)
    gone = pa.array(dropped[named])
    none = pa.scalar(None)
    ids = np.asarray(found.id[part])[heads[named]]
    columns = {
        "unit": np.asarray(found.unit[part])[named],
        "row": np.asarray(found.row[part])[named],
        "dropped": gone,
        "matched_id": pc.if_else(gone, id_strings(ids), none),
        "similarity": pc.if_else(gone, similarity[named].astype(np.float32), none),
        "cluster_size": size[named].astype(np.int32),
    }
    return pa.table(columns, schema=VERDICTS)
