"""Benchmark sets as files: which texts must not be trained on, read whole with their sha256."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.plan import list_files
from pipelines.readers.compression import decompress
from pipelines.readers.jsonl import LINE_ENDINGS
from pipelines.readers.reader import HashingFile, SourceFile, Span, open_span
from pipelines.recipe import Source

PARQUET_ENDING = ".parquet"


@dataclass(frozen=True)
class Benchmark:
    """A named set of texts: rows of JSON Lines (plain, gz, zst) or Parquet files.

    The text of a row is that of its fields joined by line feeds; a list of strings, such as the
    choices of a question, is joined likewise, and a null gives nothing.
    """

    name: str
    root: str
    """A file, a folder, a glob, an fsspec URL or a Hugging Face dataset "namespace/name"."""
    fields: tuple[str, ...] = ("question",)
    files: str = ".*"
    """Regular expression that the path of a file below the root has to match."""

    def __post_init__(self) -> None:
        if not self.fields or isinstance(self.fields, str):
            raise ValueError(
                f"Benchmark {self.name}: fields is {self.fields!r}; wanted the names of one or "
                f'more columns, for example ("question",)'
            )

    def identity(self) -> dict[str, Any]:
        """Returns what is identity beside the files: where they are is not part of it."""
        return {"name": self.name, "fields": list(self.fields)}

    def sha256(self) -> dict[str, str]:
        """Returns the hash of each file as it is now, by the benchmark's name and a number."""
        digests = read_benchmark(self).sha256
        return {f"{self.name} {i + 1}/{len(digests)}": sha for i, sha in enumerate(digests)}


class BenchmarkTexts(NamedTuple):
    """What the files of a benchmark hold."""

    texts: tuple[str, ...]
    """By row: the files in path order, their rows as they stand."""
    sha256: tuple[str, ...]
    """Of each file."""


def read_benchmark(benchmark: Benchmark) -> BenchmarkTexts:
    """Reads a benchmark as it is now.

    Raises:
        ValueError: nothing is there, no file is of a known kind or none has a row, a row is broken
            or lacks a field, or a field holds no text.
    """
    source = Source(benchmark.name, benchmark.root, benchmark.files)
    try:
        listed = list_files(source)
    except ValueError as error:
        raise ValueError(f"Benchmark {benchmark.name}: {error}") from error
    files = [file for file in listed if file.path.lower().endswith((*LINE_ENDINGS, PARQUET_ENDING))]
    if not files:
        raise ValueError(
            f"Benchmark {benchmark.name}: none of the {len(listed)} files at {benchmark.root!r} is "
            f"JSON Lines or Parquet by its name ({', '.join((*LINE_ENDINGS, PARQUET_ENDING))}); "
            f"the first is {listed[0].path!r}"
        )
    texts: list[str] = []
    digests = []
    for file in files:
        with open_span(Span(file, 0, file.size)) as stream:
            data = stream.read()
        digests.append(hashlib.sha256(data).hexdigest())
        for number, row in enumerate(_rows(benchmark, file, data)):
            texts.append(_text(benchmark, f"{file.path}, row {number}", row))
    if not texts:
        raise ValueError(
            f"Benchmark {benchmark.name}: {benchmark.root!r} has no rows; give the file that has "
            f"the questions"
        )
    return BenchmarkTexts(tuple(texts), tuple(digests))


def _rows(benchmark: Benchmark, file: SourceFile, data: bytes) -> list[Any]:
    """Returns the rows of a file: of JSON Lines whatever stands on a line that is not blank."""
    where = f"Benchmark {benchmark.name}: {file.path}"
    if file.path.lower().endswith(PARQUET_ENDING):
        try:
            # no thread of Arrow's: one that gives back Python's memory while Python ends aborts it
            parquet = pq.ParquetFile(io.BytesIO(data), pre_buffer=False)
            names = [name for name in benchmark.fields if name in parquet.schema_arrow.names]
            return parquet.read(names, use_threads=False).to_pylist() if names else [{}]
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{where} is no Parquet file or damaged: {error}") from error
    pieces = []
    for piece in decompress(HashingFile(io.BytesIO(data)), file.path, b""):
        if piece.error is not None:
            raise ValueError(f"{where} is damaged: {piece.error}; fetch it again")
        pieces.append(piece.data)
    rows = []
    for number, line in enumerate(b"".join(pieces).split(b"\n")):
        try:
            rows += [orjson.loads(line)] if line.strip() else []
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{where}, line {number + 1} is not JSON: {error}") from error
    return rows


def _text(benchmark: Benchmark, where: str, row: Any) -> str:
    """Returns the text of a row."""
    if not isinstance(row, dict):
        raise ValueError(f"Benchmark {benchmark.name}: {where} is {row!r:.40}, wanted an object")
    parts: list[str] = []
    for name in benchmark.fields:
        if name not in row:
            raise ValueError(
                f"Benchmark {benchmark.name}: {where} has no field {name!r}; fields here: "
                f"{', '.join(map(str, row)) or 'none of those asked for'}. "
                f"Name the fields that hold its text."
            )
        values = row[name] if isinstance(row[name], list) else [row[name]]
        for value in values:
            if value is not None and not isinstance(value, str):
                raise ValueError(
                    f"Benchmark {benchmark.name}: {where} has {value!r:.40} in {name!r}; "
                    f"wanted text or a list of texts"
                )
        parts += [value for value in values if value is not None]
    return "\n".join(parts)
