"""JSON Lines: every line is a row or blank, whatever is in it and wherever the file is split."""

import gzip
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.document import content_hash
from pipelines.readers import jsonl
from pipelines.readers import lines as lines_module
from pipelines.readers.jsonl import JsonlReader
from pipelines.readers.reader import BATCH_BYTES, Span, Tally
from tests.pipelines.readers.harness import MUTATIONS, mutate, peak_bytes, read, source_file

GOOD = [
    {"text": "plain"},
    {"text": "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600", "id": 7},
    {"text": "", "id": "a"},
    {"text": "two\nlines\u2028and \u0000 a null", "id": "a"},
]


def write(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


def test_lines_with_texts_become_rows_that_can_be_found_again(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD)
    rows, tally = read(JsonlReader(), path)
    assert [row["text"] for row in rows] == [record["text"] for record in GOOD]
    assert tally.records == {"line": 4}
    data = path.read_bytes()
    for row in rows:
        origin = row["origin"]
        line = data[origin["offset"] : origin["offset"] + origin["length"]]
        assert json.loads(line)["text"] == row["text"]
        assert origin["content_hash"] == content_hash(line)
        assert row["key"] == str(origin["offset"])


def test_ids_become_keys_and_repeated_ones_are_numbered(tmp_path):
    records = [{"text": "x", "id": name} for name in ("a", 7, "a", None, "a#2", "a", True)]
    rows, _ = read(JsonlReader(id_field="id"), write(tmp_path / "a.jsonl", records))
    keys = [row["key"] for row in rows]
    assert keys[:3] == ["a", "7", "a#2"]
    assert keys[4:6] == ["a#2#2", "a#3"]
    assert keys[3] == str(rows[3]["origin"]["offset"])
    assert keys[6] == str(rows[6]["origin"]["offset"])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"text": "x"', "invalid_json"),
        (b"{'text': 'x'}", "invalid_json"),
        (b'{"text": "\\ud83d"}', "invalid_json"),
        (b"\x00\x01\x02", "invalid_json"),
        (b"[" * 5000 + b"]" * 5000, "invalid_json"),
        (b'{"text": "caf\xe9"}', "invalid_utf8: byte 0xe9 at byte 13"),
        (b'["text"]', "wrong_type: the line is array"),
        (b"17", "wrong_type: the line is number"),
        (b'{"text": 5}', "wrong_type: 'text' is number"),
        (b'{"text": ["x"]}', "wrong_type: 'text' is array"),
        (b'{"text": null}', "missing_text: 'text' is null"),
        (b'{"texts": "x"}', "missing_text: 'text' is missing"),
        (b'{"text": "' + b"x" * 200 + b'"}', "too_large: 212 bytes, limit 200"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_broken_line_becomes_a_row_and_its_neighbours_are_read(tmp_path, line, error):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}')
    reader = JsonlReader(max_document_bytes=20_000 if line[:1] == b"[" else 200)
    rows, tally = read(reader, path)
    assert [row["text"] for row in rows] == ["before", None, "after"]
    assert rows[1]["error"].startswith(error)
    assert rows[1]["origin"]["offset"] == 19
    assert rows[1]["origin"]["length"] == len(line)
    assert rows[1]["origin"]["content_hash"] == content_hash(line)
    broken = error.startswith("invalid")
    assert tally.records == ({"line": 2, "broken": 1} if broken else {"line": 3})


def test_nan_and_infinity_are_read_as_python_writes_them(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "x", "score": float("nan")}])
    rows, _ = read(JsonlReader(columns=("score",)), path)
    assert rows[0]["text"] == "x"
    assert rows[0]["score"] is None


def test_byte_order_mark_crlf_and_blank_lines_are_no_text(tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n \t\r\n\n{"text": "b"}\r\n\n')
    rows, tally = read(JsonlReader(), path)
    assert [row["text"] for row in rows] == ["a", "b"]
    assert tally.records == {"line": 2, "blank": 4}


def test_carried_columns_are_strings_or_json(tmp_path):
    records = [{"text": "a", "url": "u", "meta": {"n": [1, "\u00e9"]}}, {"text": "b", "meta": 2}]
    path = write(tmp_path / "a.jsonl", records)
    rows, _ = read(JsonlReader(columns=("url", "meta")), path)
    assert [row["url"] for row in rows] == ["u", None]
    assert [row["meta"] for row in rows] == ['{"n":[1,"\u00e9"]}', "2"]


@pytest.mark.parametrize("columns", [("id",), ("text",), ("error",), ("url", "url")])
def test_columns_that_gristmill_makes_are_refused(columns):
    with pytest.raises(ValueError, match="JsonlReader: columns"):
        JsonlReader(columns=columns)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".zstd"])
def test_compressed_file_gives_the_rows_of_the_plain_one(tmp_path, ending):
    plain = write(tmp_path / "a.jsonl", GOOD * 500)
    data = plain.read_bytes()
    half = data.index(b"\n", len(data) // 2) - 3  # two frames, the border within a line
    press = gzip.compress if ending == ".gz" else zstandard.compress
    packed = tmp_path / f"a.jsonl{ending}"
    packed.write_bytes(press(data[:half]) + press(data[half:]))
    expected, _ = read(JsonlReader(), plain)
    rows, tally = read(JsonlReader(), packed)
    for row in (*rows, *expected):
        del row["origin"]["path"]
    assert rows == expected
    assert tally.records == {"line": 2000}


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_truncated_compressed_file_yields_what_is_there_and_one_error(tmp_path, ending):
    records = [{"text": f"{n} {content_hash(str(n).encode())}"} for n in range(9000)]
    data = write(tmp_path / "a.jsonl", records).read_bytes()
    press = gzip.compress if ending == ".gz" else zstandard.compress
    packed = tmp_path / f"b.jsonl{ending}"
    packed.write_bytes(press(data)[:-1000])
    rows, tally = read(JsonlReader(), packed)
    assert rows[-1]["error"].startswith("truncated: ")
    good = [row["text"] for row in rows[:-1]]
    assert len(good) > 4000
    assert good == [record["text"] for record in records[: len(good)]]
    assert tally.records == {"line": len(good), "broken": 1}


def test_flipped_byte_in_gzip_yields_what_came_before_and_one_error(tmp_path):
    records = [{"text": f"{n} {content_hash(str(n).encode())}"} for n in range(9000)]
    data = bytearray(gzip.compress(write(tmp_path / "a.jsonl", records).read_bytes()))
    data[len(data) // 2] ^= 0xFF
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(data)
    rows, tally = read(JsonlReader(), packed)
    assert rows[-1]["error"].startswith("broken_compression: ")
    assert tally.records["broken"] >= 1
    assert tally.records.total() - tally.records["blank"] == len(rows)


def test_file_that_vanished_or_is_forbidden_becomes_one_row(tmp_path):
    path = tmp_path / "gone.jsonl"
    rows, tally = read(JsonlReader(), path)
    assert rows[0]["error"] == "unreadable: No such file or directory"
    assert tally.records == {"broken": 1}


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_line_of_48_mb_is_an_error_and_is_never_held(tmp_path, ending):
    line = b'{"text": "' + b"x" * (48 << 20) + b'"}'
    data = b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n'
    path = tmp_path / f"a.jsonl{ending}"
    press = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    path.write_bytes(press(data))
    reader = JsonlReader(max_document_bytes=1_000_000)
    rows, _ = read(reader, path)
    assert [row["text"] for row in rows] == ["a", None, "b"]
    assert rows[1]["error"] == f"too_large: {len(line)} bytes, limit 1000000"
    assert rows[1]["origin"]["content_hash"] == content_hash(line)
    assert peak_bytes(reader, path) < len(line) * 0.75


def test_batches_close_at_batch_bytes_and_split_files_at_split_bytes(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", [{"text": "x" * 100_000}] * 200)
    monkeypatch.setattr(jsonl, "SPLIT_BYTES", 1 << 24)
    file, reader = source_file(path), JsonlReader()
    spans = reader.split(file)
    assert [(s.start, s.stop) for s in spans] == [(0, 1 << 24), (1 << 24, file.size)]
    batches = list(reader.read(spans, Tally()))
    assert [b.num_rows for b in batches] == [BATCH_BYTES // 100_000 + 1] * 2 + [32]
    assert sum(b.num_rows for b in batches) == 200
    path.rename(tmp_path / "a.jsonl.gz")
    assert len(reader.split(source_file(tmp_path / "a.jsonl.gz"))) == 1


LINES = st.one_of(
    st.sampled_from(
        [b"", b" ", b"\r", b"{}", b'{"text": 1}', b"nonsense", b"\xff", b"\xef\xbb\xbf"]
    ),
    st.text(max_size=12).map(lambda t: json.dumps({"text": t}, ensure_ascii=False).encode()),
)


@given(
    lines=st.lists(LINES, max_size=12),
    feed=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    limit=st.sampled_from([8, 30, 1000]),
    at_once=st.sampled_from([1, 7, 64, 1 << 17]),
)
@settings(max_examples=150)
def test_rows_of_split_spans_are_the_rows_of_the_whole(lines, feed, last, cuts, limit, at_once):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(feed.join(lines) + (feed if last else b""))
        reader, file = JsonlReader(max_document_bytes=limit), source_file(path)
        whole, one = read(reader, path)
        edges = sorted({0, file.size, *(cut for cut in cuts if cut < file.size)})
        spans = [Span(file, a, b) for a, b in pairwise(edges)]
        patch.setattr(lines_module, "READ_BYTES", at_once)
        if spans:
            apart, many = read(reader, path, spans)
            assert apart == whole
            assert many.records == one.records


@given(mutations=MUTATIONS, ending=st.sampled_from(["", ".gz", ".zst"]))
@settings(max_examples=150)
def test_damaged_file_never_raises_and_every_line_is_counted(mutations, ending):
    data = b"".join(json.dumps(record).encode() + b"\n" for record in GOOD * 5)
    press = {"": bytes, ".gz": lambda d: gzip.compress(d, mtime=0), ".zst": zstandard.compress}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.jsonl{ending}"
        path.write_bytes(mutate(press[ending](data), mutations))
        rows, tally = read(JsonlReader(id_field="id"), path)
    assert len(rows) == tally.records["line"] + tally.records["broken"]
