"""Folders of files: one document a file, its kind from its name."""

import os

import pytest

from pipelines.document import content_hash
from pipelines.readers.files import (
    CODE_ENDINGS,
    PROSE_ENDINGS,
    FilesReader,
    HtmlFilesReader,
    file_kind,
)
from pipelines.readers.reader import BATCH_BYTES, Span, Tally
from tests.pipelines.readers.harness import peak_bytes, read, source_file


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\n", "plain\n"),
        (b"", ""),
        (b"\xef\xbb\xbfcaf\xc3\xa9", "caf\u00e9"),
        (b"a\r\nb\x00", "a\r\nb\x00"),
    ],
)
def test_file_becomes_one_row_with_its_text(tmp_path, data, text):
    path = tmp_path / "a.md"
    path.write_bytes(data)
    rows, tally = read(FilesReader(), path)
    assert rows == [
        {
            "key": "0",
            "origin": {
                "path": "a.md",
                "offset": 0,
                "length": len(data),
                "content_hash": content_hash(data),
            },
            "error": None,
            "text": text,
            "kind": "prose",
            "format": "markdown",
        }
    ]
    assert tally.records == {"file": 1}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"caf\xe9!", "invalid_utf8: byte 0xe9 at byte 3"),
        (b"\xef\xbb\xbfcaf\xe9!", "invalid_utf8: byte 0xe9 at byte 6"),
        (b"\xff\xfea\x00", "invalid_utf8: byte 0xff at byte 0"),
        (b"x" * 101, "too_large: 101 bytes, limit 100"),
    ],
)
def test_file_that_cannot_be_text_becomes_a_row_with_its_error(tmp_path, data, error):
    path = tmp_path / "a.py"
    path.write_bytes(data)
    rows, tally = read(FilesReader(max_document_bytes=100), path)
    assert [(row["error"], row["text"], row["kind"]) for row in rows] == [(error, None, "code")]
    assert rows[0]["origin"]["content_hash"] == content_hash(data)
    assert tally.records == ({"broken": 1} if "utf8" in error else {"file": 1})


def test_file_that_vanished_becomes_a_row(tmp_path):
    rows, tally = read(FilesReader(), tmp_path / "gone.txt")
    assert [row["error"] for row in rows] == ["unreadable: No such file or directory"]
    assert tally.records == {"broken": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_that_is_forbidden_becomes_a_row(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"secret")
    path.chmod(0)
    tally = Tally()
    (batch,) = FilesReader().read([Span(source_file(path), 0, 6)], tally)
    assert batch.column("error").to_pylist() == ["unreadable: Permission denied"]


def test_other_errors_of_the_disk_are_raised_for_the_engine(tmp_path):
    folder = tmp_path / "a.txt"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        list(FilesReader().read([Span(source_file(folder), 0, 1)], Tally()))


def test_file_of_48_mb_is_an_error_and_is_never_held(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (48 << 20))
    reader = FilesReader(max_document_bytes=1_000_000)
    rows, _ = read(reader, path)
    assert rows[0]["error"] == f"too_large: {48 << 20} bytes, limit 1000000"
    assert peak_bytes(reader, path) < 8 << 20


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/b.py", ("code", "python")),
        ("a/b.PY", ("code", "python")),
        ("x.cu", ("code", "cuda")),
        ("x.txt", ("prose", "text")),
        ("x.rst", ("prose", "restructuredtext")),
        ("README", ("prose", "text")),
        ("readme", ("prose", "text")),
        ("README.md", ("prose", "markdown")),
        ("pkg-1.dist-info/METADATA", ("prose", "text")),
        ("LICENSE-MIT", ("prose", "text")),
        ("LICENSE.APACHE2", ("prose", "text")),
        ("COPYING.LESSER", ("prose", "text")),
        ("Makefile", ("code", "makefile")),
        ("sub/CMakeLists.txt", ("code", "cmake")),
    ],
)
def test_claimed_file_has_a_kind_and_a_format(name, kind):
    assert FilesReader().claims(name)
    assert file_kind(name) == kind


@pytest.mark.parametrize(
    "name",
    ["a.png", "a.html", "a.json", "noending", "LICENSE.pdf", "license.png", "readme.html",
     "METADATA.json", "README.md/image.gif", "a.txt.gz", "NEWSPAPER", "py", ".gitignore"],
)  # fmt: skip
def test_other_files_are_not_claimed(name):
    assert not FilesReader().claims(name)


def test_endings_and_names_can_be_chosen():
    reader = FilesReader(endings=(".log",), names=("VERSION",))
    assert reader.claims("a.log")
    assert reader.claims("VERSION")
    assert not reader.claims("a.py")
    assert not reader.claims("README")
    assert file_kind("a.log") == ("prose", "text")


def test_no_ending_is_both_prose_and_code():
    assert len(CODE_ENDINGS) > 40
    assert not set(CODE_ENDINGS) & set(PROSE_ENDINGS)
    assert all(ending == ending.lower() for ending in (*CODE_ENDINGS, *PROSE_ENDINGS))


def test_html_files_become_content(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes(b"<p>caf\xe9")
    rows, _ = read(HtmlFilesReader(), path)
    assert rows[0]["content"] == b"<p>caf\xe9"
    assert rows[0]["content_type"] == "text/html"
    assert HtmlFilesReader().claims("x.HTM")
    rows, _ = read(HtmlFilesReader(max_document_bytes=3), path)
    assert rows[0]["error"] == "too_large: 7 bytes, limit 3"
    assert rows[0]["content"] is None


def test_small_files_share_batches_that_close_at_batch_bytes(tmp_path):
    files = []
    for n in range(20):
        path = tmp_path / f"{n:02d}.txt"
        path.write_bytes(b"x" * 1_000_000)
        files.append(source_file(path))
    batches = list(FilesReader().read([Span(f, 0, f.size) for f in files], Tally()))
    assert [batch.num_rows for batch in batches] == [BATCH_BYTES // 1_000_000 + 1] * 2 + [2]


def test_name_that_is_no_utf8_is_written_out(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_bytes(b"x")
    rows, _ = read(FilesReader(), path)
    assert rows[0]["origin"]["path"] == "caf\\udce9.txt"
