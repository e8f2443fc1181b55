"""Labelled documents: read from files or datasets, sampled, de-duplicated and split, all by hash.

Whether a document is taken, on which side of the split it falls and where it stands in training
order are keyed hashes of its id or group, so neither file order nor the number of files matters.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset import MANIFEST, WORK, Dataset
from pipelines.hashing import hash128, normalised_hash128

BATCH = 1024
ROLES = ("train", "calibrate", "test")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("positive", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Columns:
    """Where a labelled document has its parts.

    Attributes:
        text: column of the text.
        label: column of the label, read as text.
        positive: the labels that mean good; every other label means bad.
        group: column whose equal values stay on one side of the split, or "id".
    """

    text: str = "text"
    label: str = "label"
    positive: tuple[str, ...] = ("positive",)
    group: str = "id"


def read_rows(path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields the rows of a dataset folder, Parquet or JSON Lines files, with those columns as text.

    A missing `id` column is filled with a hash of the first column named.

    Raises:
        ValueError: nothing is there to read, or a column is missing.
    """
    place = Path(path)
    if (place / MANIFEST).is_file():
        files = Dataset(place).data_files()
    elif (place / WORK).is_dir():
        raise ValueError(f"{path} holds an unfinished run; run the same command again to finish it")
    elif place.is_dir():
        files = sorted(f for f in place.rglob("*") if _is_parquet(f) or _is_json_lines(f))
    else:
        files = [place] if place.is_file() else []
    files = [file for file in files if _is_parquet(file) or _is_json_lines(file)]
    if not files:
        raise ValueError(
            f"labelled documents: {path} holds no dataset, Parquet (.parquet) or JSON Lines file "
            f"(.jsonl, .jsonl.gz); check the path"
        )
    for file in files:
        for table in _parquet(file, columns) if _is_parquet(file) else _json_lines(file, columns):
            yield _with_ids(table, columns[0])


def _is_parquet(path: Path) -> bool:
    return path.name.endswith(".parquet")


def _is_json_lines(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"))


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        names = file.schema_arrow.names
        wanted = [name for name in dict.fromkeys(["id", *columns]) if name in names]
        _check(path, columns, names)
        for batch in file.iter_batches(BATCH, columns=wanted):
            cast = [batch.column(name).cast(pa.string()) for name in wanted]
            yield pa.table(dict(zip(wanted, cast, strict=True)))


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    wanted = list(dict.fromkeys(["id", *columns]))
    rows: list[dict] = []
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number}: {type(row).__name__}, wanted an object")
            _check(path, columns, list(row))
            rows.append({name: _text(row.get(name)) for name in wanted})
            if len(rows) == BATCH:
                yield _table(rows, wanted)
                rows = []
    if rows:
        yield _table(rows, wanted)


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()  # as Arrow casts it
    return None if value is None else str(value)


def _table(rows: list[dict], names: list[str]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in names})


def _check(path: Path, columns: Sequence[str], there: list[str]) -> None:
    for name in columns:
        if name != "id" and name not in there:
            raise ValueError(
                f"{path} has no column {name!r}; it has: {', '.join(there)}. Name another column."
            )


def _with_ids(table: pa.Table, column: str) -> pa.Table:
    if "id" in table.column_names and not table.column("id").null_count:
        return table
    words = hash128(table.column(column).combine_chunks())
    ids = pa.array([f"{a:016x}{b:016x}" for a, b in words.tolist()], pa.string())
    if "id" in table.column_names:
        ids = pc.coalesce(table.column("id"), ids)
        table = table.drop_columns("id")
    return table.append_column("id", ids)


def gather(
    labelled: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
    columns: Columns,
    seed: int,
    max_bytes: int,
) -> tuple[pa.Table, dict[str, int]]:
    """Reads labelled documents and returns at most max_bytes of each class, and what was counted.

    Args:
        labelled: paths of documents with a label column.
        positive: paths of good documents; their label column is not read.
        negative: paths of bad documents.
        columns: where the parts are.
        seed: of the choice.
        max_bytes: UTF-8 bytes of text that are kept of each class.

    Returns:
        SCHEMA rows in ascending order of a keyed hash of the id: a fixed shuffle. Null texts and
        labels are left out, of equal texts (up to white space) the first stays, and of texts that
        have both labels none does.
    """
    counts = {"read": 0, "without_text_or_label": 0}
    classes = {True: _Sample(seed, max_bytes), False: _Sample(seed, max_bytes)}
    group = [] if columns.group == "id" else [columns.group]
    for paths, label in ((labelled, None), (positive, True), (negative, False)):
        names = [columns.text, *([columns.label] if label is None else []), *group]
        for path in paths:
            for table in read_rows(path, names):
                rows = _labelled(table, columns, label)
                counts["read"] += table.num_rows
                counts["without_text_or_label"] += table.num_rows - rows.num_rows
                for value, sample in classes.items():
                    sample.add(rows.filter(pc.equal(rows.column("positive"), value)))
    rows = pa.concat_tables([classes[True].rows(), classes[False].rows()])
    counts["sampled"] = rows.num_rows
    rows = rows.take(np.argsort(keyed(rows.column("id"), seed, "order"), kind="stable"))
    clear, counts["contradictory"], counts["repeated"] = _clear(rows)
    return rows.take(clear), counts


def _labelled(table: pa.Table, columns: Columns, label: bool | None) -> pa.Table:
    if label is None:
        name = table.column(columns.label)
        value = pc.is_in(name, pa.array(columns.positive, pa.string()))
    else:
        name = pa.repeat(pa.scalar("positive" if label else "negative"), table.num_rows)
        value = pa.repeat(pa.scalar(label), table.num_rows)
    group = pc.coalesce(table.column(columns.group), table.column("id"))
    parts = [table.column("id"), group, table.column(columns.text), name, value]
    rows = pa.Table.from_arrays(parts, schema=SCHEMA)
    return rows.filter(pc.and_(pc.is_valid(rows.column("text")), pc.is_valid(rows.column("label"))))


class _Sample:
    """Keeps the documents with the smallest keyed hashes, up to so many bytes of text."""

    def __init__(self, seed: int, max_bytes: int) -> None:
        self._seed, self._max = seed, max_bytes
        self._tables: list[pa.Table] = []
        self._bytes = 0

    def add(self, rows: pa.Table) -> None:
        self._tables.append(rows)
        self._bytes += pc.sum(pc.binary_length(rows.column("text"))).as_py() or 0
        if self._bytes > 2 * self._max:
            self._tables = [self.rows()]
            self._bytes = pc.sum(pc.binary_length(self._tables[0].column("text"))).as_py() or 0

    def rows(self) -> pa.Table:
        rows = pa.concat_tables([SCHEMA.empty_table(), *self._tables])
        order = np.argsort(keyed(rows.column("id"), self._seed, "sample"), kind="stable")
        sizes = pc.binary_length(rows.column("text")).to_numpy()
        inside = np.cumsum(sizes[order], dtype=np.int64) <= self._max
        return rows.take(order[inside])


def _clear(rows: pa.Table) -> tuple[np.ndarray, int, int]:
    """Returns the rows to keep, how many had both labels and how many were repetitions."""
    if not rows.num_rows:
        return np.zeros(0, np.int64), 0, 0
    words = normalised_hash128(rows.column("text").combine_chunks())
    _, first, same = np.unique(words, axis=0, return_index=True, return_inverse=True)
    positive = rows.column("positive").to_numpy()
    good = np.bincount(same.ravel(), positive, len(first))
    all_of_it = np.bincount(same.ravel(), minlength=len(first))
    both = (good > 0) & (good < all_of_it)
    contradictory = int(all_of_it[both].sum())
    kept = np.sort(first[~both])
    return kept, contradictory, rows.num_rows - contradictory - len(kept)


def keyed(values: pa.ChunkedArray, seed: int, use: str) -> np.ndarray:
    """Returns a uint64 hash of each string that depends on the seed and the use."""
    prefix = pa.scalar(f"{seed}/{use}/", pa.string())
    named = pc.binary_join_element_wise(prefix, values.combine_chunks(), "")
    return hash128(named)[:, 0]


def roles(groups: pa.ChunkedArray, seed: int, holdout: float) -> np.ndarray:
    """Returns for each document 0 train, 1 calibrate or 2 test; a group is never divided.

    Args:
        groups: (n,) the name of each document's group.
        seed: of the split.
        holdout: share of the groups that is held out, half of it to calibrate, half to test.
    """
    place = keyed(groups, seed, "split") / 2.0**64
    return np.where(place >= holdout, 0, np.where(place >= holdout / 2, 1, 2))
