"""What Spark's tasks run: functions of record batches that pickle, with nothing of Spark in them.

Spark has no unsigned numbers, so hashes travel as int64 with the same bits; the order of the keep
policy travels as bytes, which Spark compares as unsigned numbers from the left. A document is one
int64: its work unit and its row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.dedup.walk import NO_LIMIT, Candidates
from pipelines.engines.key_files import load_keys
from pipelines.engines.mark_files import document_order, marks_between, runs
from pipelines.engines.pair_stages import pair_step, walked
from pipelines.engines.phase_files import save_verdicts
from pipelines.engines.set_files import save_sets
from pipelines.global_step import GroupStep, Keys
from pipelines.span_step import PieceStep

ROW_BITS = 40
"""A unit has fewer than 2^40 documents, a dataset fewer than 2^23 units."""
_ROW_MASK = (1 << ROW_BITS) - 1
BATCH = 10_000

GROUP_KEY_COLUMNS = "group_0 long, group_1 long, place binary, unit int, row long"
BAND_KEY_COLUMNS = "band int, hash long, doc long, place binary"
PIECE_COLUMNS = "hash_0 long, hash_1 long, place binary, unit int, row long, start long, end long"
SPAN_COLUMNS = "unit int, row long, start long, end long, matched binary"
VERDICT_COLUMNS = (
    "unit int, row long, dropped boolean, matched_id string, similarity float, cluster_size int, "
    "skipped int, component_id string, component_size int"
)


@dataclass(frozen=True)
class Call:
    """Runs a stage on one item and tells the driver how far it has come."""

    stage: Callable[..., Any]
    job: Any
    """Broadcast."""
    done: Any
    """Accumulator."""

    def __call__(self, numbered: tuple[int, tuple[Any, ...], int]) -> tuple[int, Any]:
        """Returns the item's number and the stage's result."""
        number, item, amount = numbered
        _one_thread()
        result = self.stage(self.job.value, *item)
        self.done.add(amount)
        return number, result


def _one_thread() -> None:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def _signed(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words).view(np.int64)


def _places(keys: Keys) -> pa.Array:
    """Returns each document's place in the keep policy, ties by id, as bytes that sort so."""
    return _sortable(np.concatenate([keys.rank, keys.id], axis=1))


def _sortable(words: np.ndarray) -> pa.Array:
    words = words.astype(">u8")
    width = words.shape[1] * 8
    data = pa.py_buffer(words.tobytes())
    offsets = np.arange(0, width * (len(words) + 1), width, dtype=np.int32)
    return pa.BinaryArray.from_buffers(pa.binary(), len(words), [None, pa.py_buffer(offsets), data])


def _batches(table: pa.Table) -> Iterator[pa.RecordBatch]:
    yield from table.to_batches(max_chunksize=BATCH)


@dataclass(frozen=True)
class GroupKeys:
    """From units to their keys for a GroupStep."""

    job: Any
    phase: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields group_0, group_1 (the 128-bit hash), place, unit, row."""
        for batch in batches:
            for unit in batch.column("unit").to_pylist():
                keys = load_keys(self.job.value.phase_folder(self.phase, unit))
                n = len(keys.row)
                columns = {
                    "group_0": _signed(keys.group[:, 0]),
                    "group_1": _signed(keys.group[:, 1]),
                    "place": _places(keys),
                    "unit": np.full(n, unit, np.int32),
                    "row": np.asarray(keys.row),
                }
                yield from _batches(pa.table(columns))


@dataclass(frozen=True)
class Decide:
    """Decides the groups of a partition; every group is whole in one."""

    step: GroupStep

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields VERDICTS."""
        parts = list(batches)
        if not parts:
            return
        table = pa.Table.from_batches(parts).combine_chunks()
        column = {name: table.column(name).combine_chunks() for name in table.column_names}
        groups = [column[f"group_{i}"].to_numpy().view(np.uint64) for i in (0, 1)]
        words = _words(column["place"])
        rows = column["row"].to_numpy()
        keys = Keys(np.stack(groups, axis=1), words[:, :-2], words[:, -2:], rows)
        verdicts = self.step.decide(keys, column["unit"].to_numpy())
        yield from _batches(verdicts)


@dataclass(frozen=True)
class PieceMarks:
    """From units to their pieces for a PieceStep."""

    job: Any
    phase: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields hash_0, hash_1, place (of the document), unit, row, start, end."""
        for batch in batches:
            for unit in batch.column("unit").to_pylist():
                for run in runs(self.job.value.phase_folder(self.phase, unit)):
                    marks = marks_between(run, 0, 1)
                    order, row = document_order(run, marks.document)
                    columns = {
                        "hash_0": _signed(marks.hash[:, 0]),
                        "hash_1": _signed(marks.hash[:, 1]),
                        "place": _sortable(order),
                        "unit": np.full(len(row), unit, np.int32),
                        "row": row,
                        "start": marks.place[:, 0].astype(np.int64),
                        "end": marks.place[:, 1].astype(np.int64),
                    }
                    yield from _batches(pa.table(columns))


@dataclass(frozen=True)
class DecidePieces:
    """Decides the pieces of a partition; all of one hash are in one."""

    step: PieceStep

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields SPANS."""
        parts = [batch for batch in batches if batch.num_rows]
        if not parts:
            return
        table = pa.Table.from_batches(parts).combine_chunks()
        column = {name: table.column(name).combine_chunks() for name in table.column_names}
        hashes = [column[f"hash_{i}"].to_numpy().view(np.uint64) for i in (0, 1)]
        place = np.stack([column[name].to_numpy() for name in ("start", "end")], axis=1)
        spans = self.step.decide(
            np.stack(hashes, axis=1),
            _words(column["place"]),
            place,
            column["unit"].to_numpy(),
            column["row"].to_numpy(),
        )
        matched = spans.column("matched").cast(pa.binary())
        yield from _batches(spans.set_column(4, "matched", matched))


def _words(places: pa.Array) -> np.ndarray:
    """Returns places, of one width, as uint64 (n, words); the last two are the id."""
    joined = b"".join(places.to_pylist())
    return np.frombuffer(joined, ">u8").reshape(len(places), -1).astype(np.uint64)


@dataclass(frozen=True)
class BandKeys:
    """From units to their documents' keys for a PairStep, a row for each key."""

    job: Any
    phase: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields band, hash, doc, place."""
        for batch in batches:
            for unit in batch.column("unit").to_pylist():
                keys = load_keys(self.job.value.phase_folder(self.phase, unit))
                docs = np.asarray(keys.row) | (unit << ROW_BITS)
                places = _places(keys)
                for band in range(keys.group.shape[1]):
                    columns = {
                        "band": np.full(len(docs), band, np.int32),
                        "hash": _signed(keys.group[:, band]),
                        "doc": docs,
                        "place": places,
                    }
                    yield from _batches(pa.table(columns))


@dataclass(frozen=True)
class Sets:
    """Writes the sets of a unit's candidates, all of which are in one group."""

    job: Any
    phase: int

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns one row: how many documents there were."""
        _one_thread()
        docs = np.sort(table.column("doc").combine_chunks().to_numpy())
        job, unit = self.job.value, int(docs[0]) >> ROW_BITS
        target, folder = job.sets(self.phase, unit), job.phase_folder(self.phase, unit)
        save_sets(target, pair_step(job, self.phase), folder, docs & _ROW_MASK)
        return pa.table({"doc": pa.array([len(docs)], pa.int64())})


@dataclass(frozen=True)
class Walk:
    """Walks the components of a partition; every component is whole in one."""

    job: Any
    phase: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Maps band, hash, doc, place, label (equal in a component) to VERDICTS."""
        parts = [batch for batch in batches if batch.num_rows]
        if not parts:
            return
        _one_thread()
        table = pa.Table.from_batches(parts).combine_chunks()
        column = {name: table.column(name).combine_chunks() for name in table.column_names}
        docs, first, member = np.unique(
            column["doc"].to_numpy(), return_index=True, return_inverse=True
        )
        keys = np.stack([column["band"].to_numpy().astype(np.int64), column["hash"].to_numpy()])
        _, group = np.unique(keys, axis=1, return_inverse=True)
        found = Candidates(
            place=_words(column["place"].take(pa.array(first))),
            unit=(docs >> ROW_BITS).astype(np.int32),
            row=docs & _ROW_MASK,
            member=member,
            group=group.reshape(-1),
        )
        yield from _batches(walked(self.job.value, self.phase, found, NO_LIMIT))


@dataclass(frozen=True)
class WriteVerdicts:
    """Writes a partition's verdicts as one file; all of a unit's are in one partition."""

    folder: str
    schema: pa.Schema

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields how many there were."""
        parts = [batch for batch in batches if batch.num_rows]
        table = pa.Table.from_batches(parts, parts[0].schema if parts else self.schema)
        if table.num_rows:
            first = int(table.column("unit")[0].as_py())
            save_verdicts(Path(self.folder) / f"{first:05d}.arrow", table.cast(self.schema))
        yield pa.RecordBatch.from_pydict({"rows": pa.array([table.num_rows], pa.int64())})
