"""WARC: every record is counted, every document and every broken record is a row."""

import gzip
import re
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.document import content_hash
from pipelines.readers import compression
from pipelines.readers.warc import DOCUMENT_TYPES, WarcReader
from tests.pipelines.readers.harness import MUTATIONS, WARC_FILES, mutate, peak_bytes, read

real_files = pytest.mark.skipif(
    not WARC_FILES.is_dir(), reason="../shared/data/warc is not on this machine"
)


def record(kind: str, body: bytes, name: str = "", **fields: str) -> bytes:
    head = [f"WARC-Type: {kind}", "WARC-Date: 2026-01-02T03:04:05Z"]
    head += [f"WARC-Record-ID: <urn:uuid:{name}>"] if name else []
    head += [f"{key.replace('_', '-')}: {value}" for key, value in fields.items()]
    head.append(f"Content-Length: {len(body)}")
    return ("WARC/1.0\r\n" + "\r\n".join(head) + "\r\n\r\n").encode() + body + b"\r\n\r\n"


def response(page: bytes, name: str = "", status: int = 200, **headers: str) -> bytes:
    headers = {"Content_Type": "text/html; charset=utf-8"} | headers
    lines = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in headers.items())
    message = f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + page
    kind = {"Content_Type": "application/http; msgtype=response"}
    return record("response", message, name, WARC_Target_URI=f"http://x/{name}", **kind)


def stretched(page: bytes, size: int) -> bytes:
    """Adds a number to the Content-Length of a record."""
    return re.sub(rb"(?<=Content-Length: )\d+", lambda m: b"%d" % (int(m[0]) + size), page)


REQUEST = record("request", b"GET / HTTP/1.1\r\n\r\n", "q", Content_Type="application/http")
FILE = [
    record("warcinfo", b"software: x\r\n", "i"),
    REQUEST,
    response(b"<p>one</p>", "1"),
    record("metadata", b"a: b\r\n", "m"),
    response(b"<p>two</p>", "2"),
    record("resource", b"<p>three</p>", "3", Content_Type="text/html"),
    record("conversion", "caf\u00e9".encode(), "4", Content_Type="text/plain"),
    record("revisit", b"", "r"),
]
DOCUMENTS = ["1", "2", "3", "4"]


def independent_counts(data: bytes) -> Counter:
    """Counts the records of a sound WARC file by type, without any of our code."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    counts: Counter = Counter()
    at = 0
    while data[at:].strip():
        at += len(data[at:]) - len(data[at:].lstrip())
        head, _, _ = data[at:].partition(b"\r\n\r\n")
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        counts[fields.get(b"warc-type", b"").decode()] += 1
        at += len(head) + 4 + int(fields[b"content-length"])
    return counts


def test_records_of_all_types_are_counted_and_documents_are_rows(tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(FILE))
    rows, tally = read(WarcReader(), path)
    assert [row["key"] for row in rows] == DOCUMENTS
    assert [row["error"] for row in rows] == [None] * 4
    assert [row["content"] for row in rows[:3]] == [b"<p>one</p>", b"<p>two</p>", b"<p>three</p>"]
    assert [row["text"] for row in rows] == [None, None, None, "caf\u00e9"]
    assert rows[0]["content_type"] == "text/html; charset=utf-8"
    assert rows[0]["url"] == "http://x/1"
    assert rows[0]["date"] == "2026-01-02T03:04:05Z"
    assert tally.records == independent_counts(path.read_bytes())
    data = path.read_bytes()
    for row in rows:
        origin = row["origin"]
        there = data[origin["offset"] : origin["offset"] + origin["length"]]
        assert there.startswith(b"WARC/1.0")
        assert content_hash(there) == origin["content_hash"]


@pytest.mark.parametrize("press", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_record_in_a_frame_of_its_own_is_found_by_offset_and_length(tmp_path, press):
    path = tmp_path / ("a.warc.gz" if press is gzip.compress else "a.warc.zst")
    path.write_bytes(b"".join(press(one) for one in FILE))
    open_frame = gzip.decompress if press is gzip.compress else zstandard.decompress
    rows, tally = read(WarcReader(), path)
    assert [row["key"] for row in rows] == DOCUMENTS
    assert tally.records.total() == len(FILE)
    data = path.read_bytes()
    for row in rows:
        origin = row["origin"]
        frame = open_frame(data[origin["offset"] : origin["offset"] + origin["length"]])
        assert content_hash(frame.removesuffix(b"\r\n\r\n")) == origin["content_hash"]


def test_file_that_is_one_gzip_member_has_no_offsets_but_the_same_rows(tmp_path):
    path = tmp_path / "a.warc.gz"
    path.write_bytes(gzip.compress(b"".join(FILE)))
    rows, _ = read(WarcReader(), path)
    assert [row["key"] for row in rows] == DOCUMENTS
    assert {row["origin"]["offset"] for row in rows} == {None}


def test_record_types_choose_the_documents_and_unknown_ones_are_refused(tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(FILE))
    rows, tally = read(WarcReader(record_types=("conversion",)), path)
    assert [row["key"] for row in rows] == ["4"]
    assert tally.records.total() == len(FILE)
    with pytest.raises(ValueError, match="record_types names 'request'; wanted some of response"):
        WarcReader(record_types=("request",))


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (response(b"gone", status=404), "http_status: 404"),
        (response(b"x", Content_Type="image/png"), "content_type: image/png"),
        (response(b"%PDF-1.7 x", Content_Type=""), "content_type: application/pdf"),
        (response(b"5\r\nabc", Transfer_Encoding="chunked"), "broken_http: "),
        (response(gzip.compress(b"x" * 50)[:-9], Content_Encoding="gzip"), "broken_http: gzip: "),
        (response(zstandard.compress(b"x" * 9)[:-2], Content_Encoding="zstd"), "broken_http: zstd"),
        (response(b"\x1f\x8b\x07", Content_Encoding="gzip"), "broken_http: gzip: "),
        (response(b"broken", Content_Encoding="br"), "broken_http: "),
        (response(b"broken", Content_Encoding="deflate"), "broken_http: deflate: "),
        (record("response", b"no http", Content_Type="application/http"), "broken_http: "),
        (record("conversion", b"\xff", Content_Type="text/plain"), "invalid_utf8: byte 0xff"),
        (response(b"x" * 3000), "too_large: "),
        (response(gzip.compress(b"x" * 3000), Content_Encoding="gzip"), "too_large: more than"),
        (b"WARC/1.0\r\nContent-Length: 1\r\n\r\nx\r\n\r\n", "broken_record: no WARC-Type"),
        (b"WARC/1.0\r\nWARC-Type: response\r\n\r\n", "broken_record: no Content-Length"),
        (b"WARC/1.0\r\nContent-Length: x\r\n\r\n", "broken_record: no Content-Length"),
        (b"some garbage\r\nmore of it\r\n", "broken_record: no record begins here"),
        (response(b"abcdefgh")[:-9], "broken_record: Content-Length"),
        (stretched(response(b"y"), 40), "broken_record: Content-Length"),
        (stretched(response(b"y"), 1500), "truncated: Content-Length"),
        (stretched(response(b"y"), 10**9), "truncated: Content-Length"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_broken_record_becomes_a_row_and_its_neighbours_are_read(tmp_path, page, error, packed):
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    parts = [response(b"before", "1"), page, response(b"after", "2"), REQUEST]
    path.write_bytes(b"".join(gzip.compress(part) if packed else part for part in parts))
    rows, tally = read(WarcReader(max_document_bytes=2000), path)
    assert [row["content"] for row in rows] == [b"before", None, b"after"]
    assert rows[1]["error"].startswith(error)
    assert tally.records["request"] == 1
    assert tally.records.total() == 4


@pytest.mark.parametrize(
    "page",
    [
        response(b"5\r\nhello\r\n0\r\n\r\n", Transfer_Encoding="chunked"),
        response(gzip.compress(b"hello"), Content_Encoding="gzip"),
        response(zlib.compress(b"hello"), Content_Encoding="deflate"),
        response(b"hello", Content_Encoding="gzip", Transfer_Encoding="chunked"),  # decoded before
        response(b"hello", Content_Encoding="none"),
        response(b"hello", Content_Encoding="x-gzip"),
        response(zlib.compress(b"hello", wbits=-15), Content_Encoding="deflate"),
        response(b"\x0b\x02\x80hello\x03", Content_Encoding="br"),
        response(zstandard.compress(b"hello"), Content_Encoding="zstd"),
        response(
            b"19\r\n" + gzip.compress(b"hello", mtime=0) + b"\r\n0\r\n\r\n",
            Content_Encoding="gzip",
            Transfer_Encoding="chunked",
        ),
        record("response", b"HTTP/1.0 200 OK\nContent-Type: text/html\n\nhello"),
        b"WARC/1.1\nwarc-type:response\ncontent-length:  46 \n\n"
        b"HTTP/1.0 200 OK\nContent-Type: text/html\n\nhello\n\n",
    ],
)
def test_http_bodies_are_decoded_however_they_were_stored(tmp_path, page):
    path = tmp_path / "a.warc"
    path.write_bytes(page + REQUEST)
    rows, _ = read(WarcReader(), path)
    assert [(row["error"], row["content"]) for row in rows] == [(None, b"hello")]


def test_missing_content_type_is_guessed_and_uris_are_trimmed(tmp_path):
    page = record("resource", b"<!doctype html><html><p>x", WARC_Target_URI="<http://x/a b> ")
    path = tmp_path / "a.warc"
    path.write_bytes(page + page)
    rows, _ = read(WarcReader(), path)
    assert [row["content_type"] for row in rows] == ["text/html"] * 2
    assert [row["url"] for row in rows] == ["http://x/a b"] * 2
    assert [row["key"] for row in rows] == ["0", str(len(page))]


def test_repeated_record_ids_are_numbered(tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(response(b"x", "same") * 3)
    rows, _ = read(WarcReader(), path)
    assert [row["key"] for row in rows] == ["same", "same#2", "same#3"]


def test_reading_goes_on_after_a_broken_gzip_member(tmp_path):
    members = [gzip.compress(response(b"%d" % n + bytes(range(256)) * 9, str(n))) for n in range(5)]
    middle = bytearray(members[2])
    middle[len(middle) // 2] ^= 0xFF
    members[2] = bytes(middle)
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(members))
    rows, tally = read(WarcReader(), path)
    good = [row["key"] for row in rows if row["error"] is None]
    assert good == ["0", "1", "3", "4"]
    assert [row["error"].split(":")[0] for row in rows if row["error"]] == ["broken_compression"]
    assert tally.records == {"response": 4, "broken": 1}


def test_file_that_vanished_becomes_one_row(tmp_path):
    rows, tally = read(WarcReader(), tmp_path / "gone.warc.gz")
    assert [row["error"] for row in rows] == ["unreadable: No such file or directory"]
    assert tally.records == {"broken": 1}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_record_of_48_mb_is_an_error_and_is_never_held(tmp_path, packed):
    parts = [response(b"a", "1"), response(b"x" * (48 << 20), "2"), response(b"b", "3")]
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    path.write_bytes(b"".join(gzip.compress(p, 1) if packed else p for p in parts))
    reader = WarcReader(max_document_bytes=1_000_000)
    rows, _ = read(reader, path)
    assert [row["key"] for row in rows] == ["1", "2", "3"]
    assert rows[1]["error"].startswith("too_large: ")
    assert rows[1]["origin"]["content_hash"] == content_hash(parts[1].removesuffix(b"\r\n\r\n"))
    assert peak_bytes(reader, path) < 24 << 20


@given(mutations=MUTATIONS, at_once=st.sampled_from([1, 5, 61, 1024]))
@settings(max_examples=100)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_rows_do_not_depend_on_how_much_is_read_at_once(packed, mutations, at_once):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / ("a.warc.gz" if packed else "a.warc")
        data = mutate(b"".join(FILE), mutations)  # sound compression of broken records
        path.write_bytes(gzip.compress(data) if packed else data)
        expected, before = read(WarcReader(max_document_bytes=120), path)
        patch.setattr(compression, "READ_BYTES", at_once)
        patch.setattr(compression, "PIECE_BYTES", at_once)
        rows, after = read(WarcReader(max_document_bytes=120), path)
    assert rows == expected
    assert after.records == before.records


@given(mutations=MUTATIONS)
@settings(max_examples=150)
@pytest.mark.parametrize("ending", [".warc", ".warc.gz", ".warc.zst", ".warc.lz4"])
def test_damaged_file_never_raises_and_every_record_is_counted(ending, mutations):
    if ending == ".warc.lz4":
        if not WARC_FILES.is_dir():
            pytest.skip("../shared/data/warc is not on this machine; it holds the only lz4 file")
        data = (WARC_FILES / "block-sized-records.warc.lz4").read_bytes()
    else:
        press = {".warc": bytes, ".warc.zst": zstandard.compress}
        data = b"".join(press.get(ending, lambda d: gzip.compress(d, mtime=0))(f) for f in FILE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        path.write_bytes(mutate(data, mutations))
        rows, tally = read(WarcReader(), path)
    documents = sum(tally.records[kind] for kind in DOCUMENT_TYPES)
    assert len(rows) == documents + tally.records["broken"]


# every file of ../shared/data/warc that the reader claims: counts by type, good rows, errors
FILES = {
    "block-sized-records.warc": ({"unknown": 3}, 0, []),
    "block-sized-records.warc.gz": ({"unknown": 3}, 0, []),
    "block-sized-records.warc.lz4": ({"unknown": 3}, 0, []),
    "clipped.warc.gz": ({"broken": 1}, 0, ["truncated"]),
    "clueweb-quirk.warc.gz": ({"warcinfo": 1, "response": 29}, 29, []),
    "example-bad-non-chunked.warc.gz": (
        {"warcinfo": 2, "response": 1, "request": 2, "revisit": 1},
        1,
        [],
    ),
    "example-digest.warc": ({"request": 4}, 0, []),
    "example-iana.org-chunked.warc": ({"warcinfo": 1, "response": 1, "request": 1}, 1, []),
    "example-resource.warc.gz": ({"warcinfo": 2, "resource": 1}, 1, []),
    "example-space-in-target-uri.warc.gz": (
        {"warcinfo": 1, "resource": 1},
        0,
        ["content_type: image/png"],
    ),
    "example-trunc.warc": ({"warcinfo": 2, "request": 1, "broken": 1}, 0, ["broken_record"]),
    "example-wget-bad-target-uri.warc.gz": (
        {"warcinfo": 1, "request": 1, "response": 1, "metadata": 1, "resource": 2},
        3,
        [],
    ),
    "example-wrong-chunks.warc.gz": ({"response": 1, "request": 1}, 1, []),
    "example.warc": ({"warcinfo": 2, "response": 1, "request": 2, "revisit": 1}, 1, []),
    "example.warc.gz": ({"warcinfo": 2, "response": 1, "request": 2, "revisit": 1}, 1, []),
    "post-test.warc.gz": (
        {"response": 3, "request": 3},
        0,
        ["content_type: application/json"] * 3,
    ),
    "sample-0000.warc.gz": (
        {"warcinfo": 1, "request": 22, "response": 22, "metadata": 1, "resource": 2},
        24,
        [],
    ),
    "sample-0001.warc.gz": (
        {"warcinfo": 1, "request": 15, "response": 15, "metadata": 1, "resource": 2},
        17,
        [],
    ),
    "warcfile.warc.gz": (
        {"warcinfo": 1, "request": 17, "response": 16, "metadata": 16},
        16,
        [],
    ),
    "whirlwind.warc.gz": ({"warcinfo": 1, "request": 1, "response": 1, "metadata": 1}, 1, []),
    "whirlwind.warc.wet.gz": ({"warcinfo": 1, "conversion": 1}, 1, []),
}
UNCLAIMED = {
    "bad.arc",
    "example-bad.warc.gz.bad",
    "example-space-in-url.arc",
    "example.arc",
    "example.arc.gz",
    "whirlwind.warc.wat.gz",
}
DAMAGED = {"clipped.warc.gz", "example-trunc.warc", "block-sized-records.warc.lz4"}


@real_files
def test_every_real_file_is_claimed_or_known_not_to_be():
    names = {path.name for path in WARC_FILES.iterdir()}
    assert {name for name in names if WarcReader().claims(name)} == set(FILES)
    assert names - set(FILES) == UNCLAIMED


@real_files
@pytest.mark.parametrize("name", FILES)
def test_real_file_gives_its_records_and_no_others(name):
    counts, good, errors = FILES[name]
    path = WARC_FILES / name
    rows, tally = read(WarcReader(), path)
    assert tally.records == counts
    assert sum(row["error"] is None for row in rows) == good
    found = [row["error"] for row in rows if row["error"] is not None]
    assert len(found) == len(errors)
    assert all(one.startswith(start) for one, start in zip(found, errors, strict=True))
    headers = path.read_bytes()
    if name.endswith(".gz") and name not in DAMAGED:
        headers = gzip.decompress(headers)
    if name not in DAMAGED:
        independent = independent_counts(path.read_bytes())
        known = Counter({k if k in counts else "unknown": n for k, n in independent.items()})
        assert known == tally.records
        assert tally.records.total() == len(re.findall(rb"^WARC/\d", headers, re.MULTILINE))


@real_files
def test_real_page_and_its_wet_record_agree():
    page, _ = read(WarcReader(), WARC_FILES / "whirlwind.warc.gz")
    text, _ = read(WarcReader(), WARC_FILES / "whirlwind.warc.wet.gz")
    assert page[0]["url"] == text[0]["url"] == "https://an.wikipedia.org/wiki/Escopete"
    assert b"Escopete" in page[0]["content"]
    assert "Escopete" in text[0]["text"]
    assert text[0]["content"] is None
