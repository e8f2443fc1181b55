"""Parquet: rows of any string type, split by row groups, damaged files as rows."""

import datetime
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.document import content_hash
from pipelines.readers import parquet
from pipelines.readers.parquet import NOTHING_READ, ParquetReader
from pipelines.readers.reader import BATCH_BYTES, Span, Tally
from tests.pipelines.readers.harness import MUTATIONS, mutate, read, source_file

TEXTS = ["plain", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600", "", "two\nlines"]


def write(path: Path, columns: dict, **options) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def invalid(values: list[bytes | None]) -> pa.StringArray:
    """Returns strings that need not be UTF-8, as some writers make them."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array([text.encode() for text in TEXTS], pa.binary()),
        pa.array([text.encode() for text in TEXTS], pa.large_binary()),
    ],
    ids=lambda column: str(column.type).split("<")[0],
)
def test_text_of_any_string_type_becomes_string(tmp_path, column):
    path = write(tmp_path / "a.parquet", {"text": column})
    rows, tally = read(ParquetReader(), path)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["key"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["origin"]["content_hash"] for row in rows] == [
        content_hash(text.encode()) for text in TEXTS
    ]
    assert {row["origin"]["offset"] for row in rows} == {None}
    assert tally.records == {"row": 4}


def test_reserved_columns_come_along_and_dates_become_iso_8601(tmp_path):
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    path = write(
        tmp_path / "a.parquet",
        {
            "text": ["a"],
            "url": pa.array(["http://x"], pa.large_string()),
            "date": pa.array([when], pa.timestamp("s", "UTC")),
            "language": pa.array([3]),  # no string: left out
            "licence": pa.array(["MIT"]).dictionary_encode(),
            "n": pa.array([1]),
            "tags": pa.array([["x", "y"]]),
        },
    )
    reader = ParquetReader(columns=("n", "tags"))
    rows, _ = read(reader, path)
    assert rows[0]["url"] == "http://x"
    assert rows[0]["date"] == "2026-01-02T03:04:05Z"
    assert rows[0]["licence"] == "MIT"
    assert rows[0]["n"] == 1
    assert rows[0]["tags"] == ["x", "y"]
    names = ["key", "origin", "error", "text", "n", "tags", "url", "date", "licence"]
    assert reader.schema(source_file(path)).names == names


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (ParquetReader(text_column="body"), "text_column names 'body', which is there 0 times"),
        (ParquetReader(text_column="n"), "text_column names 'n', which is int64; wanted strings"),
        (ParquetReader(id_column="x"), "id_column names 'x', which is double; wanted strings or"),
        (ParquetReader(columns=("no",)), "columns names 'no', which is there 0 times"),
        (ParquetReader(columns=("url",)), "columns names 'url', which is int64; wanted strings or"),
    ],
)
def test_missing_or_mistyped_column_is_refused_with_file_and_remedy(tmp_path, reader, message):
    path = write(tmp_path / "a.parquet", {"text": ["a"], "n": [1], "x": [0.5], "url": [1]})
    with pytest.raises(ValueError, match=r"ParquetReader: a\.parquet: ") as caught:
        reader.schema(source_file(path))
    assert message in str(caught.value)
    assert "Name " in str(caught.value)


def test_ids_become_keys_and_repeated_or_missing_ones_do_not_collide(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": ["x"] * 5, "id": ["a", "b", None, "a", "2"]})
    rows, _ = read(ParquetReader(id_column="id"), path)
    assert [row["key"] for row in rows] == ["a", "b", "2", "a#2", "2#2"]
    path = write(tmp_path / "b.parquet", {"text": ["x"] * 3, "id": [9, 8, None]})
    rows, _ = read(ParquetReader(id_column="id"), path)
    assert [row["key"] for row in rows] == ["9", "8", "2"]


def test_bad_values_become_error_rows_and_their_neighbours_are_read(tmp_path):
    values = [b"good", b"caf\xe9", None, b"x" * 101, b"\xe2\x82", b"\xac", "\u20ac".encode()]
    path = write(
        tmp_path / "a.parquet",
        {"text": invalid(values), "url": invalid([b"u"] * 6 + [b"\xff"])},
    )
    rows, tally = read(ParquetReader(max_document_bytes=100), path)
    assert [row["text"] for row in rows] == ["good", None, None, None, None, None, None]
    assert [row["error"] for row in rows] == [
        None,
        "invalid_utf8: byte 0xe9 at byte 3",
        "missing_text: 'text' is null",
        "too_large: 101 bytes, limit 100",
        "invalid_utf8: byte 0xe2 at byte 0",
        "invalid_utf8: byte 0xac at byte 0",
        "invalid_utf8: 'url': byte 0xff at byte 0",
    ]
    assert tally.records == {"row": 3, "broken": 4}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not parquet at all, but long enough to hold a footer",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
    ],
    ids=["empty", "text", "half", "tail"],
)
def test_file_that_is_no_parquet_becomes_one_row(tmp_path, damage):
    path = write(tmp_path / "a.parquet", {"text": ["x" * 1000]})
    path.write_bytes(damage(path.read_bytes()))
    reader = ParquetReader()
    assert reader.schema(source_file(path)) == NOTHING_READ
    rows, tally = read(reader, path)
    assert [row["error"].split(":")[0] for row in rows] == ["broken_file"]
    assert tally.records == {"broken": 1}


def test_damaged_row_group_becomes_one_row_and_the_others_are_read(tmp_path):
    texts = [content_hash(str(n).encode()) for n in range(3000)]
    path = write(
        tmp_path / "a.parquet",
        {"text": texts},
        row_group_size=1000,
        use_dictionary=False,
        write_page_checksum=True,
    )
    data = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data[middle.data_page_offset + middle.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(data)
    rows, tally = read(ParquetReader(), path)
    assert [row["text"] for row in rows] == [*texts[:1000], None, *texts[2000:]]
    assert rows[1000]["error"].startswith("broken_file: 1000 rows from row 1000 on: ")
    assert tally.records == {"row": 2000, "broken": 1}


def test_file_that_vanished_becomes_one_row(tmp_path):
    path = tmp_path / "gone.parquet"
    rows, _ = read(ParquetReader(), path)
    assert [row["error"] for row in rows] == ["unreadable: No such file or directory"]


def test_batches_close_at_batch_bytes_whatever_the_row_groups(tmp_path):
    texts = ["x" * 99_999 + str(n % 10) for n in range(200)]
    batches = []
    for size in (7, 50, 200):
        path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=size)
        file = source_file(path)
        batches.append(list(ParquetReader().read([Span(file, 0, file.size)], Tally())))
    assert batches[0] == batches[1] == batches[2]
    assert [b.num_rows for b in batches[0]] == [BATCH_BYTES // 100_000 + 1] * 2 + [32]


def test_pack_of_files_with_other_columns_closes_a_batch_between_them(tmp_path):
    one = source_file(write(tmp_path / "a.parquet", {"text": ["a"]}))
    two = source_file(write(tmp_path / "b.parquet", {"text": ["b"], "url": ["u"]}))
    three = source_file(write(tmp_path / "c.parquet", {"text": ["c"], "url": ["v"]}))
    spans = [Span(file, 0, file.size) for file in (one, two, three)]
    batches = list(ParquetReader().read(spans, Tally()))
    assert [batch.column("text").to_pylist() for batch in batches] == [["a"], ["b", "c"]]


def test_large_row_group_is_read_in_bounded_memory(tmp_path):
    rng = np.random.default_rng(5)
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        texts = [rng.bytes(2_000).hex() for _ in range(10_000)]
        writer.write_table(pa.table({"text": texts}), row_group_size=10_000)
    del texts
    file = source_file(path)
    before = pa.total_allocated_bytes()
    most = 0
    for batch in ParquetReader().read([Span(file, 0, file.size)], Tally()):
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    assert file.size > 15_000_000
    assert most < 4 * BATCH_BYTES


@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=9)), min_size=1, max_size=60),
    group=st.integers(1, 9),
    split=st.integers(1, 3000),
)
@settings(max_examples=50)
def test_rows_of_split_spans_are_the_rows_of_the_whole(texts, group, split):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = write(Path(folder) / "a.parquet", {"text": texts, "id": texts}, row_group_size=group)
        reader, file = ParquetReader(), source_file(path)
        whole, one = read(reader, path, [Span(file, 0, file.size)])
        patch.setattr(parquet, "SPLIT_BYTES", split)
        spans = reader.split(file)
        apart, many = read(reader, path, spans)
    assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
    assert (spans[0].start, spans[-1].stop) == (0, file.size)
    assert all(b.start < b.stop for b in spans)
    assert apart == whole
    assert many.records == one.records


def test_split_groups_row_groups_up_to_the_split_size(tmp_path, monkeypatch):
    texts = [content_hash(str(n).encode()) * 10 for n in range(1000)]
    path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=100, compression="none")
    file, reader = source_file(path), ParquetReader()
    assert len(reader.split(file)) == 1
    monkeypatch.setattr(parquet, "SPLIT_BYTES", file.size // 3)
    spans = reader.split(file)
    assert 4 <= len(spans) <= 5
    assert all(b.stop - b.start <= file.size // 3 for b in spans[:-1])
    sizes = [sum(b.num_rows for b in reader.read([span], Tally())) for span in spans]
    assert sum(sizes) == 1000
    assert all(size % 100 == 0 for size in sizes)
    assert [a.stop for a, b in pairwise(spans)] == [b.start for a, b in pairwise(spans)]


@given(mutations=MUTATIONS)
@settings(max_examples=100)
def test_damaged_file_is_rows_or_a_clear_refusal(mutations):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        write(path, {"text": TEXTS * 30}, row_group_size=40, write_page_checksum=True)
        path.write_bytes(mutate(path.read_bytes(), mutations))
        file, tally = source_file(path), Tally()
        refusal, rows = "", 0
        try:
            spans = ParquetReader().split(file)
            rows = sum(batch.num_rows for batch in ParquetReader().read(spans, tally))
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert "text_column names 'text'" in refusal  # the damage renamed or retyped it
        else:
            assert rows == tally.records.total()
