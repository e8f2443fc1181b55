"""A dataset: a folder with data, ledger and dropped files and a manifest that is written last.

No manifest, no dataset. Readers follow the manifest, so files that a killed run left behind are
never read.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.atomic import written

MANIFEST = "manifest.json"
WORK = ".work"


class Dataset:
    """A finished dataset on disk.

    Raises:
        ValueError: there is no manifest at the path; the message says what is there instead.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest = self.path / MANIFEST
        if not manifest.is_file():
            state = "does not exist"
            if (self.path / WORK).is_dir():
                state = "holds an unfinished run; run the same curate command again to finish it"
            elif self.path.exists():
                state = f"has no {MANIFEST}, so it is not a dataset"
            raise ValueError(f"{self.path}: {state}")
        self.manifest: dict[str, Any] = json.loads(manifest.read_text("utf-8"))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the recipe that made the dataset."""
        return self.manifest["recipe"]["fingerprint"]

    @cached_property
    def identity(self) -> str:
        """A hash of the manifest: recipe, inputs, counts and the sha256 of every file."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()

    def files(self, kind: str) -> list[Path]:
        """Returns the files of a kind (data, ledger, dropped) in order."""
        entries = self.manifest["files"]
        return [self.path / e["path"] for e in entries if e["path"].startswith(f"{kind}/")]

    def data_files(self) -> list[Path]:
        """Returns the files that hold the kept documents, in order."""
        return self.files("data")

    def batches(self, kind: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a kind in order, a row group at a time."""
        for path in self.files(kind):
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for group in range(file.num_row_groups):
                    yield from file.read_row_group(group, columns).to_batches()

    def table(self, kind: str, columns: list[str] | None = None) -> pa.Table:
        """Returns the rows of a kind as one table. Memory: the whole of the chosen columns."""
        tables = [pq.read_table(path, columns=columns) for path in self.files(kind)]
        return pa.concat_tables(tables)

    def find(self, kind: str, document_id: str) -> dict[str, Any] | None:
        """Returns the row of a kind with this id, or none."""
        for number, path in enumerate(self.files(kind)):
            ids = pq.read_table(path, columns=["id"]).column("id")
            place = pc.index(ids, document_id).as_py()
            if place >= 0:
                table = pq.read_table(self.files(kind)[number])
                return table.slice(place, 1).to_pylist()[0]
        return None


def rows_with(
    paths: Sequence[Path], key: str, wanted: Collection[str], columns: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the rows of Parquet files whose key is wanted; only their row groups are read."""
    values = pa.array(sorted(set(wanted)), pa.string())
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                mask = pc.is_in(file.read_row_group(group, [key]).column(0), values)
                if pc.any(mask).as_py():
                    yield from file.read_row_group(group, columns).filter(mask).to_pylist()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in canonical form: sorted keys, two spaces, a closing newline; atomically."""
    with written(path) as temporary:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
        temporary.write_text(text + "\n", "utf-8")


def file_entry(root: Path, path: Path, rows: int) -> dict[str, Any]:
    """Returns a manifest's entry of a file: its path below the root, rows, bytes and sha256."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    relative = path.relative_to(root).as_posix()
    return {"path": relative, "rows": rows, "bytes": path.stat().st_size, "sha256": digest}
