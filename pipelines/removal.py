"""The blast radius: how many documents of each source, language and domain every rule drops.

write_unit counts a unit's groups into a file of its own under .work; before the commit one process
adds the files up. A corpus has any number of domains, so neither holds all of them: a unit's counts
are written as often as there are UNIT_ROWS of them, and adding up goes by partitions of a hash, on
disk, as soon as there are SUM_ROWS, and again within a partition that is still larger. Peak: 86 MiB
of Arrow memory for 0.5 and for 3 million domains. Counts are integers, so neither the order nor the
engine changes them.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.atomic import written
from pipelines.engines.job import Job
from pipelines.hashing import hash128
from pipelines.limits import DIMENSIONS
from pipelines.statistics import KEPT

UNIT_ROWS = 1 << 16
SUM_ROWS = 1 << 18
PARTITIONS = 64
ROUNDS = 10
"""A hash of 64 bits has so many times six; 10^18 groups would need them."""

GROUP = ("by", "group", "rule")
COUNTS = pa.schema([*((name, pa.string()) for name in GROUP), ("documents", pa.int64())])
"""One row for each group (by: a dimension) and outcome (rule, or "kept") that has documents."""

HOST = r"^\s*(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//(?:[^/?#]*@)?(?P<host>\[[^\]]*\]|[^/?#:@\s]*)"


def domains(url: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Returns the hosts of addresses in lower case, without "www."; null where there is none.

    They are hosts, not registered domains: a.example.org and b.example.org are two.
    """
    host = pc.struct_field(pc.extract_regex(url, HOST), "host")
    host = pc.utf8_rtrim(pc.utf8_lower(host), ".")
    host = pc.replace_substring_regex(host, r"^www\.(.)", r"\1")
    return pc.if_else(pc.equal(host, ""), pa.scalar(None, pa.string()), host)


def count_removal(kept: pa.RecordBatch, dropped: pa.RecordBatch) -> pa.Table:
    """Counts a batch's documents: COUNTS.

    Args:
        kept: documents with source, language and url.
        dropped: the same and `dropped_by`.
    """
    parts = []
    for batch, rule in ((kept, pa.repeat(KEPT, kept.num_rows)), (dropped, dropped["dropped_by"])):
        for by in DIMENSIONS:
            group = group_names(batch, by)
            table = pa.table({"group": group, "rule": rule}).filter(group.is_valid())
            found = table.group_by(["group", "rule"], use_threads=False)
            found = found.aggregate([([], "count_all")])
            columns = [found[name] for name in ("group", "rule", "count_all")]
            parts.append(pa.table([pa.repeat(by, len(found)), *columns], schema=COUNTS))
    return pa.concat_tables(parts)


def group_names(documents: pa.RecordBatch | pa.Table, by: str) -> pa.Array | pa.ChunkedArray:
    """Returns the group of each document in a dimension, null where it is in none."""
    return domains(documents["url"]) if by == "domain" else documents[by]


class RemovalWriter:
    """Writes the counts of a unit. Use it as a context manager; memory: UNIT_ROWS rows."""

    def __init__(self, path: Path) -> None:
        self._stack = ExitStack()
        self._path, self._held = path, _Held(UNIT_ROWS)

    def __enter__(self) -> "RemovalWriter":
        temporary = self._stack.enter_context(written(self._path))
        sink = self._stack.enter_context(pa.OSFile(str(temporary), "wb"))
        self._file = self._stack.enter_context(pa.ipc.new_file(sink, COUNTS))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._file.write_table(self._held.take())
        self._stack.__exit__(kind, error, trace)

    def add(self, kept: pa.RecordBatch, dropped: pa.RecordBatch) -> None:
        """Counts a batch's documents."""
        if self._held.add(count_removal(kept, dropped)):
            self._file.write_table(self._held.take())


def removal_file(job: Job, unit: int) -> Path:
    """Where a unit's counts are until the dataset is committed."""
    return job.plan_folder() / "removal" / f"{unit:05d}.arrow"


def whole_groups(paths: Sequence[Path], aside: Path) -> Iterator[pa.Table]:
    """Yields the sums of files of counts as COUNTS: every group once, all its rows in one table.

    Args:
        paths: what RemovalWriter wrote.
        aside: a folder that does not exist, for the partitions; it is removed at the end.
    """
    try:
        yield from _whole(_read(paths), aside, 0)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Held:
    """Counts in memory, added up as they come."""

    def __init__(self, most: int) -> None:
        self._most, self._parts, self._rows = most, [COUNTS.empty_table()], 0

    def add(self, counts: pa.Table) -> bool:
        """Returns true where it is time to take what is held."""
        self._parts.append(counts)
        self._rows += len(counts)
        if self._rows > self._most:
            self._parts = [self.take()]
            self._rows = len(self._parts[0])
        return 2 * self._rows > self._most and len(self._parts) == 1

    def take(self) -> pa.Table:
        """Returns the sums and holds nothing any more."""
        groups = pa.concat_tables(self._parts).group_by(list(GROUP), use_threads=False)
        self._parts, self._rows = [COUNTS.empty_table()], 0
        sums = groups.aggregate([("documents", "sum")])
        return pa.table([sums[name] for name in (*GROUP, "documents_sum")], schema=COUNTS)


def _read(paths: Iterable[Path]) -> Iterator[pa.Table]:
    for path in paths:
        with pa.OSFile(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for index in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(index)])


def _whole(parts: Iterator[pa.Table], aside: Path, level: int) -> Iterator[pa.Table]:
    """Adds up in memory if it fits, else in partitions of the groups' hash on disk."""
    held = _Held(SUM_ROWS)
    for part in parts:
        if held.add(part) and level < ROUNDS:
            break
    else:
        yield held.take()
        return
    aside.mkdir(parents=True)
    paths = [aside / f"{number:02d}.arrow" for number in range(PARTITIONS)]
    with ExitStack() as stack:
        files = []
        for path in paths:
            sink = stack.enter_context(pa.OSFile(str(path), "wb"))
            files.append(stack.enter_context(pa.ipc.new_file(sink, COUNTS)))
        _spread(held.take(), files, level)
        for part in parts:
            if held.add(part):
                _spread(held.take(), files, level)
        _spread(held.take(), files, level)
    for path in paths:
        yield from _whole(_read([path]), path.with_suffix(""), level + 1)
        path.unlink()


def _spread(counts: pa.Table, files: Sequence[pa.ipc.RecordBatchFileWriter], level: int) -> None:
    """Writes each row to the partition of its group."""
    group = counts.column("group").combine_chunks()
    bits = hash128(group)[:, 0] >> np.uint64(6 * level)
    partition = (bits % np.uint64(PARTITIONS)).astype(np.int64)
    order = np.argsort(partition, kind="stable")
    borders = partition[order].searchsorted(np.arange(PARTITIONS + 1))
    ordered = counts.take(pa.array(order))
    for number, file in enumerate(files):
        start, stop = borders[number], borders[number + 1]
        if stop > start:
            file.write_table(ordered.slice(start, stop - start).combine_chunks())
