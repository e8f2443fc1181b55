"""The stages of a VectorStep, between map_unit and write_unit.

    train_centroids   centroids from a sample of all units (one task)
    assign_unit       the vectors of a unit, sorted by cluster
    pack_clusters     clusters in packages (one task)
    walk_clusters     the clusters of a package, walked in order: verdicts

Of the dataset nothing is held in memory but the centroids, and a sample or one package of clusters,
of which the vectors are read from a file where they do not fit.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.atomic import written, written_folder
from pipelines.dedup.clusters import assign, sampling_order, train
from pipelines.dedup.vector_walk import walk_vectors
from pipelines.document import id_strings
from pipelines.engines.job import Job
from pipelines.engines.key_files import load_array, load_keys
from pipelines.engines.phase_files import kept_batches, save_verdicts
from pipelines.global_step import VERDICTS, VectorStep

SAMPLE_BYTES, SAMPLE_PER_CLUSTER = 128 << 20, 64
"""Vectors that centroids are trained on; more than that only where a centroid would have fewer."""
PACKAGE_BYTES = 32 << 20
"""Vectors of the clusters of a package together, unless one cluster has more."""
VECTORS_SHARE = 0.25
"""Share of a worker's memory that the vectors of a package may take."""
PLACE_BYTES = 200
"""What a walked document takes beside its vector: place, rank, id, match."""
ROWS = 4096
"""Vectors that are scaled, assigned or copied at once."""
DRAWN = np.dtype([("order", "u8"), ("high", "u8"), ("low", "u8"), ("unit", "i8"), ("row", "i8")])
"""A document of the sample: when it is drawn, its id, where it is."""


def train_centroids(job: Job, phase: int, memory: int) -> None:
    """Trains the centroids on a sample of the documents, drawn by a keyed hash of the id.

    Raises:
        RuntimeError: no document has a vector, or the centroids would not fit into the memory.
    """
    target = job.links(phase) / "centroids.npy"
    if target.exists():
        return
    step = vector_step(job, phase)
    documents, number, dimensions = 0, 0, 0
    for unit in range(len(job.plan.units)):
        size = load_array(job.phase_folder(phase, unit), "size")
        documents += len(size)
        number += int(np.count_nonzero(size))
        dimensions = max(dimensions, int(size.max(initial=0)))
    if documents and not number:
        raise RuntimeError(
            f"{step.name}: none of {documents:,} documents has a usable vector in "
            f"{step.reads[0]!r}. Check the source or the step that makes the column."
        )
    plan = step.clustering(number)
    needed = 4 * plan.num_clusters * dimensions
    if needed > VECTORS_SHARE * memory:
        raise RuntimeError(
            f"{step.name}: {plan.num_clusters:,} centroids take {needed >> 20} MiB, a worker has "
            f"{memory >> 20} MiB. Give more --memory, fewer --workers or fewer num_clusters."
        )
    within = SAMPLE_BYTES // max(1, 4 * dimensions)
    most = max(within, SAMPLE_PER_CLUSTER * plan.num_clusters)
    drawn = _drawn(job, phase, most, plan.seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    shape, room = (len(drawn), dimensions), int(memory * VECTORS_SHARE)
    sample, give_back = _vector_room(target.parent, shape, room)
    _fill(job, phase, drawn, sample, give_back)
    with written(target) as temporary, temporary.open("wb") as stream:
        np.save(stream, train(sample, plan.num_clusters, plan.num_rounds, give_back))


def _drawn(job: Job, phase: int, most: int, seed: int) -> np.ndarray:
    """Returns the usable documents that come first in sampling order, DRAWN (s,), in that order."""
    drawn, last = np.zeros(0, DRAWN), np.uint64(2**64 - 1)
    for unit in range(len(job.plan.units)):
        keys = load_keys(job.phase_folder(phase, unit))
        usable = np.flatnonzero(keys.size)
        found = np.zeros(len(usable), DRAWN)
        found["high"], found["low"] = keys.id[usable].T
        found["order"] = sampling_order(keys.id[usable], seed)
        found["unit"], found["row"] = unit, keys.row[usable]
        drawn = np.concatenate([drawn, found[found["order"] <= last]])
        if len(drawn) > 2 * most:
            drawn = _first(drawn, most)
            last = drawn["order"][-1]
    return _first(drawn, most)


def _first(drawn: np.ndarray, number: int) -> np.ndarray:
    return drawn[np.lexsort((drawn["low"], drawn["high"], drawn["order"]))[:number]]


def _fill(
    job: Job, phase: int, drawn: np.ndarray, sample: np.ndarray, pause: Callable[[], None]
) -> None:
    """Reads the vectors of drawn documents into a sample."""
    step = vector_step(job, phase)
    for unit in np.unique(drawn["unit"]):
        places = np.flatnonzero(drawn["unit"] == unit)
        places = places[np.argsort(drawn["row"][places])]
        rows = drawn["row"][places]
        for batch in kept_batches(job.phase_folder(phase, int(unit)), mapped=True):
            mine = batch.column(0).to_numpy()
            wanted = np.flatnonzero(np.isin(rows, mine, assume_unique=True))
            if len(wanted):
                taken = batch.take(pa.array(mine.searchsorted(rows[wanted])))
                sample[places[wanted]] = step.vectors(taken)
                pause()


def assign_unit(job: Job, phase: int, unit: int) -> None:
    """Writes the vectors of a unit, sorted by cluster, and which documents they are of."""
    target = job.sets(phase, unit)
    if target.is_dir():
        return
    centroids = np.load(job.links(phase) / "centroids.npy")
    folder = job.phase_folder(phase, unit)
    usable = np.flatnonzero(load_array(folder, "size"))
    numbers = np.empty(len(usable), np.int32)
    for start, vectors in _vectors(job, phase, unit):
        numbers[start : start + len(vectors)] = assign(vectors, centroids)
    order = np.argsort(numbers, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    with written_folder(target) as temporary:
        with (temporary / "values").open("wb") as stream:
            for start, vectors in _vectors(job, phase, unit):
                for number, vector in enumerate(vectors, start):
                    os.pwrite(stream.fileno(), vector, int(place[number]) * vector.nbytes)
        np.save(temporary / "numbers.npy", numbers[order])
        np.save(temporary / "keys.npy", usable[order])


def _vectors(job: Job, phase: int, unit: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the usable vectors of a unit in order, some at a time, and how many came before."""
    step, before = vector_step(job, phase), 0
    for batch in kept_batches(job.phase_folder(phase, unit)):
        for start in range(0, batch.num_rows, ROWS):
            vectors = step.vectors(batch.slice(start, ROWS))
            vectors = vectors[vectors.any(axis=1)]
            yield before, vectors
            before += len(vectors)


def pack_clusters(job: Job, phase: int) -> int:
    """Puts neighbouring clusters into packages; returns their number."""
    target = job.links(phase) / "bounds.npy"
    if not target.exists():
        centroids = np.load(job.links(phase) / "centroids.npy", mmap_mode="r")
        counts = np.zeros(len(centroids), np.int64)
        for unit in range(len(job.plan.units)):
            numbers = np.load(job.sets(phase, unit) / "numbers.npy", mmap_mode="r")
            counts += np.bincount(numbers, minlength=len(counts))
        bounds, total = [0], 0
        for number, count in enumerate(counts * centroids.shape[1] * 4):
            if count and total and total + count > PACKAGE_BYTES:
                bounds.append(number)
                total = 0
            total += count
        bounds += [len(counts)] if len(counts) else []
        with written(target) as temporary, temporary.open("wb") as stream:
            np.save(stream, np.array(bounds, np.int64))
    return len(np.load(target)) - 1


@dataclass(frozen=True)
class _Package:
    """The n documents of some clusters, cluster by cluster in the order of the keep policy.

    Attributes:
        cluster: int32 (n,), ascending.
        unit: int32 (n,).
        row: int64 (n,), the place in the unit.
        id: uint64 (n, 2).
        stored: int64 (n,), the place among the vectors of the unit.
    """

    cluster: np.ndarray
    unit: np.ndarray
    row: np.ndarray
    id: np.ndarray
    stored: np.ndarray


def walk_clusters(job: Job, phase: int, package: int, memory: int) -> None:
    """Walks the clusters of a package and writes their verdicts.

    Raises:
        RuntimeError: one cluster has more documents than fit into the memory without vectors.
    """
    target = job.verdicts(phase) / f"{package:05d}.arrow"
    if target.exists():
        return
    found = _package(job, phase, package, memory)
    least = vector_step(job, phase).least()
    vectors, give_back = _gathered(job, phase, found, int(memory * VECTORS_SHARE))
    edges = np.append(np.flatnonzero(np.diff(found.cluster, prepend=-1)), len(found.row))
    anchors = np.empty(len(found.row), np.int64)
    millionths = np.empty(len(found.row), np.int64)
    for start, stop in pairwise(edges):
        walked = walk_vectors(vectors[start:stop], least, give_back)
        anchors[start:stop] = np.where(walked.anchors < 0, -1, walked.anchors + start)
        millionths[start:stop] = walked.millionths
    save_verdicts(target, _verdicts(found, anchors, millionths))


def _package(job: Job, phase: int, package: int, memory: int) -> _Package:
    low, high = np.load(job.links(phase) / "bounds.npy")[package : package + 2]
    cluster, unit, row, place, stored = [], [], [], [], []
    total = 0
    for number in range(len(job.plan.units)):
        numbers = np.load(job.sets(phase, number) / "numbers.npy", mmap_mode="r")
        start, stop = numbers.searchsorted([low, high])
        total += stop - start
        if total * PLACE_BYTES > memory / 2:
            raise RuntimeError(
                f"{job.global_step(phase).name}: a cluster of more than {total:,} documents does "
                f"not fit into {memory >> 20} MiB a worker. Give more --memory, fewer --workers "
                f"or more num_clusters."
            )
        if start == stop:
            continue
        index = np.load(job.sets(phase, number) / "keys.npy", mmap_mode="r")[start:stop]
        keys = load_keys(job.phase_folder(phase, number))
        cluster.append(numbers[start:stop])
        unit.append(np.full(stop - start, number, np.int32))
        row.append(keys.row[index])
        place.append(np.concatenate([keys.rank[index], keys.id[index]], axis=1))
        stored.append(np.arange(start, stop))
    places = np.concatenate(place)
    numbers = np.concatenate(cluster)
    order = np.lexsort([*reversed(places.T), numbers])
    return _Package(
        numbers[order],
        np.concatenate(unit)[order],
        np.concatenate(row)[order],
        places[order, -2:],
        np.concatenate(stored)[order],
    )


def _gathered(
    job: Job, phase: int, found: _Package, memory: int
) -> tuple[np.ndarray, Callable[[], None]]:
    """Returns the vectors of a package and what gives their pages back, as `_vector_room` does."""
    dimensions = np.load(job.links(phase) / "centroids.npy", mmap_mode="r").shape[1]
    vectors, give_back = _vector_room(job.links(phase), (len(found.row), dimensions), memory)
    for unit in np.unique(found.unit):
        mine = np.flatnonzero(found.unit == unit)
        mine = mine[np.argsort(found.stored[mine])]
        path = job.sets(phase, int(unit)) / "values"
        for start in range(0, len(mine), ROWS):
            part = mine[start : start + ROWS]
            vectors[part] = _read(path, found.stored[part], dimensions)
            give_back()
    return vectors, give_back


def _vector_room(
    folder: Path, shape: tuple[int, int], memory: int
) -> tuple[np.ndarray, Callable[[], None]]:
    """Returns room for vectors, float32 (n, d), in memory or, if they are large, in a file.

    The file has no name: it is gone with the process. What is returned beside it takes its pages
    out of memory; they stay in the file.
    """
    if 4 * shape[0] * shape[1] <= memory:
        return np.empty(shape, np.float32), _nothing
    with tempfile.TemporaryFile(dir=folder) as file:
        mapped = np.memmap(file, np.float32, "w+", shape=shape)

    def give_back() -> None:
        mapped._mmap.madvise(mmap.MADV_DONTNEED)

    return np.asarray(mapped), give_back


def _read(path: Path, stored: np.ndarray, dimensions: int) -> np.ndarray:
    values = np.memmap(path, np.float32, "r").reshape(-1, dimensions)
    return values[stored]


def _nothing() -> None:
    pass


def _verdicts(found: _Package, anchors: np.ndarray, millionths: np.ndarray) -> pa.Table:
    """Returns VERDICTS on all documents that were dropped or dropped another one."""
    n = len(anchors)
    dropped = anchors >= 0
    heads = np.where(dropped, anchors, np.arange(n))
    size = np.bincount(heads, minlength=n)[heads]
    named = np.flatnonzero(size > 1)
    gone, none = pa.array(dropped[named]), pa.scalar(None)
    similarity = (millionths[named] / 1e6).astype(np.float32)
    columns = {
        "unit": found.unit[named],
        "row": found.row[named],
        "dropped": gone,
        "matched_id": pc.if_else(gone, id_strings(found.id[heads[named]]), none),
        "similarity": pc.if_else(gone, pa.array(similarity), none),
        "cluster_size": size[named].astype(np.int32),
        "skipped": np.zeros(len(named), np.int32),
        "component_id": pa.nulls(len(named), pa.string()),
        "component_size": pa.nulls(len(named), pa.int32()),
    }
    return pa.table(columns, schema=VERDICTS)


def vector_step(job: Job, phase: int) -> VectorStep:
    """Returns the VectorStep that ends a phase."""
    step = job.global_step(phase)
    if not isinstance(step, VectorStep):
        raise ValueError(f"{step.name} does not compare vectors")
    return step
