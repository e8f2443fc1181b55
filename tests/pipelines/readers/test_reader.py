"""What holds for every reader: any fsspec path, the same batches twice, it pickles."""

import gzip
import io
import pickle

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import content_hash
from pipelines.readers.files import FilesReader, HtmlFilesReader
from pipelines.readers.jsonl import JsonlReader
from pipelines.readers.parquet import ParquetReader
from pipelines.readers.reader import HashingFile, Reader, SourceFile, Span, Tally
from pipelines.readers.warc import WarcReader


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"], "url": ["u", "v"]}), sink)
    return sink.getvalue()


WET = (
    b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 1\r\n\r\na\r\n\r\n"
)
CASES = {
    "a.parquet": (ParquetReader(), parquet_bytes()),
    "a.jsonl": (JsonlReader(), b'{"text": "a"}\n{"text": "b"}\n'),
    "a.jsonl.gz": (JsonlReader(), gzip.compress(b'{"text": "a"}\n{"text": "b"}\n')),
    "a.warc.wet.gz": (WarcReader(), gzip.compress(WET)),
    "a.md": (FilesReader(), b"a"),
    "a.html": (HtmlFilesReader(), b"<p>a"),
}


def memory_file(name: str, data: bytes) -> SourceFile:
    with fsspec.open(f"memory://readers/{name}", "wb") as stream:
        stream.write(data)
    return SourceFile("s", name, f"memory://readers/{name}", len(data), "")


@pytest.mark.parametrize("name", CASES)
def test_reader_reads_any_fsspec_path_and_hashes_its_bytes(name):
    reader, data = CASES[name]
    file = memory_file(name, data)
    tally = Tally()
    batches = list(reader.read(reader.split(file), tally))
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [row.get("text") or row["content"].decode() for row in rows][:1] in (["a"], ["<p>a"])
    assert all(row["error"] is None for row in rows)
    assert {batch.schema for batch in batches} == {reader.schema(file)}
    assert tally.digests == {f"{name}:0-{len(data)}": content_hash(data)}
    assert tally.records.total() == len(rows)


@pytest.mark.parametrize("name", CASES)
def test_reader_gives_the_same_batches_twice_and_after_pickling(name):
    reader, data = CASES[name]
    file = memory_file(name, data)
    again = pickle.loads(pickle.dumps(reader))
    assert again == reader
    spans = [Span(file, 0, file.size)]
    first, second = (list(one.read(spans, Tally())) for one in (reader, again))
    assert first == second


@pytest.mark.parametrize("reader", {type(case[0]): case[0] for case in CASES.values()}.values())
def test_reader_yields_nothing_without_spans(reader):
    tally = Tally()
    assert list(reader.read([], tally)) == []
    assert not tally.records


@pytest.mark.parametrize("name", CASES)
def test_each_file_is_claimed_by_one_reader(name):
    readers: list[Reader] = [reader for reader, _ in CASES.values()]
    claiming = {type(reader) for reader in readers if reader.claims(f"folder/{name.upper()}")}
    assert claiming == {type(CASES[name][0])}


def test_broken_kinds_are_counted_apart():
    tally = Tally()
    assert not tally.count("line", None)
    assert not tally.count("line", "too_large: 3 bytes, limit 2")
    assert tally.count("line", "invalid_json: bad")
    assert tally.records == {"line": 2, "broken": 1}


def test_hashing_file_hashes_what_is_read_and_what_is_left():
    file = HashingFile(io.BytesIO(b"abcdef"))
    assert file.read(2) == b"ab"
    assert file.tell() == 2
    assert file.drain() == content_hash(b"abcdef")
    assert file.tell() == 6
