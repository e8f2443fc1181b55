"""The intermediate files of a phase: documents and ledger of a unit, verdicts of a global step."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipelines.atomic import written
from pipelines.global_step import VERDICTS

COMPLETE = "complete"


def phase_batches(folder: Path) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Yields the dropped documents and the ledger of a mapped unit, batch by batch."""
    yield from zip(
        _batches(folder / "dropped.arrow"), _batches(folder / "ledger.arrow"), strict=True
    )


def ledger_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """Yields the ledger of a mapped unit; what is not touched of it is not read."""
    yield from _batches(folder / "ledger.arrow", mapped=True)


def kept_batches(folder: Path, mapped: bool = False) -> Iterator[pa.RecordBatch]:
    """Yields the documents that a mapped unit kept, `row` first.

    Args:
        folder: of the unit.
        mapped: whether to map the file into memory; what is not touched is then not read.
    """
    yield from _batches(folder / "kept.arrow", mapped)


def _batches(path: Path, mapped: bool = False) -> Iterator[pa.RecordBatch]:
    if not path.exists():  # the unit had no documents at all
        return
    with pa.memory_map(str(path)) if mapped else pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def save_verdicts(path: Path, verdicts: pa.Table) -> None:
    """Writes verdicts, sorted by unit and row, spans by start as well."""
    verdicts = verdicts.sort_by([(name, "ascending") for name in _order(verdicts.schema)])
    with (
        written(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, verdicts.schema) as writer,
    ):
        writer.write_table(verdicts)


def mark_complete(folder: Path) -> None:
    """Says that a folder holds all verdicts of a step."""
    with written(folder / COMPLETE) as temporary:
        temporary.write_text("", "utf-8")


def verdicts_complete(folder: Path) -> bool:
    """True once all verdicts of a step are there, whichever engine made them."""
    return (folder / COMPLETE).exists()


def _order(schema: pa.Schema) -> list[str]:
    return [name for name in ("unit", "row", "start") if name in schema.names]


def unit_verdicts(folder: Path, unit: int, schema: pa.Schema = VERDICTS) -> pa.Table:
    """Returns the verdicts on a unit's documents, in order of row, spans by start as well."""
    parts = [schema.empty_table()]
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            units = table.column("unit").combine_chunks().to_numpy(zero_copy_only=False)
            start, stop = units.searchsorted([unit, unit + 1])
            parts.append(table.slice(start, stop - start))
    order = [(name, "ascending") for name in _order(schema)]
    return pa.concat_tables(parts).sort_by(order)
