"""What the tests of all readers share: reading a file into rows, and what every reader promises."""

import tracemalloc
from pathlib import Path

from hypothesis import strategies as st

from pipelines.document import content_hash
from pipelines.readers.reader import Reader, SourceFile, Span, Tally

WARC_FILES = Path(__file__).parents[4] / "shared" / "data" / "warc"


def source_file(path: Path) -> SourceFile:
    size = path.stat().st_size if path.exists() else 0
    return SourceFile("source", path.name, str(path), size, "")


def read(reader: Reader, path: Path, spans: list[Span] | None = None) -> tuple[list[dict], Tally]:
    """Reads a file, checks the promises of a reader and returns its rows."""
    file = source_file(path)
    spans = reader.split(file) if spans is None else spans
    tally = Tally()
    rows = []
    for batch in reader.read(spans, tally):
        batch.validate(full=True)
        assert batch.schema == reader.schema(file)
        rows += batch.to_pylist()
    keys = [row["key"] for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(row["error"] is None or row.get("text") is None for row in rows)
    assert all(row["error"] is None or row.get("content") is None for row in rows)
    whole = path.read_bytes() if path.exists() else b""
    for span in spans:
        name = f"{file.path}:{span.start}-{span.stop}"
        assert tally.digests[name] == content_hash(whole[span.start : span.stop])
    return rows, tally


def peak_bytes(reader: Reader, path: Path) -> int:
    """Returns what Python held at most while a file was read."""
    file = source_file(path)
    tally = Tally()
    for batch in reader.read(reader.split(file), tally):  # imports and caches
        del batch
    tracemalloc.start()
    for batch in reader.read(reader.split(file), tally):
        del batch
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["flip", "delete", "insert", "truncate"]), st.integers(0, 10**9)),
    min_size=1,
    max_size=4,
)


def mutate(data: bytes, mutations: list[tuple[str, int]]) -> bytes:
    changed = bytearray(data)
    for kind, where in mutations:
        at = where % max(len(changed), 1)
        if kind == "flip" and changed:
            changed[at] ^= 1 + where % 255
        elif kind == "delete":
            del changed[at : at + 1 + where % 7]
        elif kind == "insert":
            changed[at:at] = bytes([where % 256]) * (1 + where % 5)
        elif kind == "truncate":
            del changed[at:]
    return bytes(changed)
