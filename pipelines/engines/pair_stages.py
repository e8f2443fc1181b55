"""The stages of a PairStep, between map_unit and write_unit.

    populate       who takes part (one task)
    link_band      one key of all documents: which of them share it
    link           the components of documents that share keys, in packages (one task)
    spread_band    what link_band found, in order of packages
    set_unit       the sets of a unit's candidates
    walk_package   the components of a package, walked in order: verdicts
    carry_unit     the verdicts on an earlier unit's documents that need not be walked again

Documents are numbered through all units. `link` is the one place where something that grows with
the dataset is held in memory, 16 bytes a document; a component whose sets do not fit is walked
from a file.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.atomic import written, written_folder
from pipelines.dedup.links import (
    BAND_BYTES,
    JOIN_BYTES,
    components,
    in_packages,
    packages,
    shared_documents,
    unpacked,
    weights,
)
from pipelines.dedup.walk import Candidates, lined_up, verdicts, walk_line
from pipelines.engines.job import Job
from pipelines.engines.key_files import load_array, load_keys
from pipelines.engines.phase_files import save_verdicts, unit_verdicts
from pipelines.engines.population import Population
from pipelines.engines.set_files import Sets, save_sets
from pipelines.global_step import PairStep

PACKAGE_VALUES = 4 << 20
"""Values that the sets of a package have together, unless one component has more: 32 MB."""
PACKAGES = 1024
"""From so many packages on they grow as far as memory lets them: each opens the files of all."""
CHUNK = 1 << 20
BAND_SHARE, SETS_SHARE = 0.5, 0.25
"""Shares of a worker's memory that a band's keys and a component's sets may take."""


def band_parts(job: Job, phase: int, num_keys: int, memory: int) -> int:
    """Returns in how many ranges of hashes `link_band` has to look at a band.

    Raises:
        RuntimeError: `link` would not fit into the memory.
    """
    needed = num_keys * JOIN_BYTES
    if needed > memory:
        raise RuntimeError(
            f"{job.global_step(phase).name}: linking {num_keys:,} documents takes "
            f"{needed >> 20} MiB, a worker has {memory >> 20} MiB. Give more --memory or fewer "
            f"--workers."
        )
    return 1 + int(num_keys * BAND_BYTES // (BAND_SHARE * memory))


def link_band(job: Job, phase: int, band: int, part: int, parts: int) -> None:
    """Finds the documents that share a key; of hashes only one of equal ranges is looked at."""
    target = job.links(phase) / f"band-{band:04d}-{part:04d}"
    if target.exists():
        return
    low, high = part * 2**64 // parts, (part + 1) * 2**64 // parts - 1
    hashes, documents = [], []
    for first, found in Population.of(job, phase).parts(job, phase, "group", band):
        mine = np.flatnonzero((found >= np.uint64(low)) & (found <= np.uint64(high)))
        hashes.append(found[mine])
        documents.append(mine + first)
    shared = shared_documents(np.concatenate(hashes), np.concatenate(documents))
    with written(target) as temporary:
        shared.tofile(temporary)


def link(job: Job, phase: int, memory: int) -> int:
    """Joins the documents that share keys; returns the number of packages of components."""
    folder = job.links(phase) / "roots"
    if not folder.is_dir():
        everybody = Population.of(job, phase)
        roots = components(_pieces(job, phase), everybody.touched)
        roots[everybody.first[-1] :] = -1  # ghosts are not walked
        sums = weights(roots, everybody.parts(job, phase, "size"))
        room = int(memory * SETS_SHARE) // sums.itemsize
        most = max(PACKAGE_VALUES, min(int(sums.sum()) // PACKAGES, room))
        with written_folder(folder) as temporary:
            np.save(temporary / "roots.npy", roots)
            np.save(temporary / "bounds.npy", packages(sums, most))
    return len(np.load(folder / "bounds.npy")) - 1


def _pieces(job: Job, phase: int) -> Iterator[np.ndarray]:
    """Yields what `link_band` found; a piece begins with the last document of the one before."""
    for path in sorted(job.links(phase).glob("band-*")):
        for start in range(0, path.stat().st_size // 8, CHUNK):
            yield _entries(path, max(0, start - 1), start + CHUNK)


def _entries(path: Path, start: int, stop: int) -> np.ndarray:
    return np.fromfile(path, np.int64, stop - start, offset=8 * start)


def spread_band(job: Job, phase: int, band: int, part: int) -> None:
    """Puts what `link_band` found into the order of packages."""
    target = job.links(phase) / f"spread-{band:04d}-{part:04d}"
    if target.is_dir():
        return
    folder = job.links(phase) / "roots"
    roots, bounds = np.load(folder / "roots.npy", mmap_mode="r"), np.load(folder / "bounds.npy")
    entries = np.fromfile(job.links(phase) / f"band-{band:04d}-{part:04d}", np.int64)
    entries, starts = in_packages(entries, roots, bounds)
    with written_folder(target) as temporary:
        entries.tofile(temporary / "entries")
        np.save(temporary / "starts.npy", starts)


def set_unit(job: Job, phase: int, unit: int) -> None:
    """Writes the sets of a unit's candidates."""
    if job.sets(phase, unit).is_dir():
        return
    rows = _rows(job, phase, unit)
    save_sets(job.sets(phase, unit), pair_step(job, phase), job.phase_folder(phase, unit), rows)


def _rows(job: Job, phase: int, unit: int, carried: bool = False) -> np.ndarray:
    """Returns the rows of a unit's documents that are walked, ascending.

    Or those of whom nothing has changed. One that has another text and no links is neither.
    """
    everybody = Population.of(job, phase)
    mine = slice(*everybody.first[unit : unit + 2])
    walked = np.load(job.links(phase) / "roots" / "roots.npy", mmap_mode="r")[mine] >= 0
    chosen = np.flatnonzero(~walked & ~everybody.touched[mine] if carried else walked)
    return load_array(job.phase_folder(phase, unit), "row")[chosen]


def carry_unit(job: Job, phase: int, unit: int) -> None:
    """Takes over the earlier verdicts on a unit's documents that are not walked again."""
    target = job.verdicts(phase) / f"carried-{unit:05d}.arrow"
    if target.exists():
        return
    earlier = unit_verdicts(job.before().verdicts(phase), unit)
    same = pc.is_in(earlier.column("row"), pa.array(_rows(job, phase, unit, carried=True)))
    save_verdicts(target, earlier.filter(same))


def walk_package(job: Job, phase: int, package: int, memory: int) -> None:
    """Walks the components of one package and writes their verdicts."""
    target = job.verdicts(phase) / f"{package:05d}.arrow"
    if target.exists():
        return
    found = _package(job, phase, package)
    save_verdicts(target, walked(job, phase, found, memory))


def _package(job: Job, phase: int, package: int) -> Candidates:
    members, groups = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    num_groups = 0
    for folder in sorted(job.links(phase).glob("spread-*")):
        start, stop = np.load(folder / "starts.npy", mmap_mode="r")[package : package + 2]
        documents, starts = unpacked(_entries(folder / "entries", int(start), int(stop)))
        members.append(documents)
        groups.append(np.cumsum(starts) + num_groups)
        num_groups += int(starts.sum())
    documents, member = np.unique(np.concatenate(members), return_inverse=True)
    first = Population.of(job, phase).first
    unit = np.searchsorted(first, documents, "right") - 1
    width = load_array(job.phase_folder(phase, 0), "rank").shape[1] + 2
    place = np.empty((len(documents), width), np.uint64)
    row = np.empty(len(documents), np.int64)
    for number in np.unique(unit):
        mine = np.flatnonzero(unit == number)
        keys = load_keys(job.phase_folder(phase, int(number)))
        index = documents[mine] - first[number]
        place[mine] = np.concatenate([keys.rank[index], keys.id[index]], axis=1)
        row[mine] = keys.row[index]
    return Candidates(place, unit.astype(np.int32), row, member, np.concatenate(groups))


def walked(job: Job, phase: int, found: Candidates, memory: int) -> pa.Table:
    """Walks candidates, component by component, and returns their VERDICTS.

    Args:
        job: the job.
        phase: that ends in a PairStep.
        found: whole components, of which the sets are saved.
        memory: bytes; sets that take more than a quarter are walked from a file.
    """
    line = lined_up(found)
    folders = {int(number): job.sets(phase, int(number)) for number in np.unique(line.unit)}
    sets = Sets(folders, line.unit, line.row, int(memory * SETS_SHARE))
    comparison = pair_step(job, phase).comparison()
    result = walk_line(line, sets.offsets, sets.values, comparison, sets.budget, sets.give_back)
    return verdicts(line, result)


def pair_step(job: Job, phase: int) -> PairStep:
    """Returns the PairStep that ends a phase."""
    step = job.global_step(phase)
    if not isinstance(step, PairStep):
        raise ValueError(f"{step.name} does not compare pairs")
    return step
