"""Compaction: a chain of snapshots, or one dataset, as a dataset in canonical form.

Documents lie in order of their id, in files of equal ranges of it, so the bytes depend on what the
dataset says and not on the runs that made it: an incremental chain and one run over all of its
sources give the same files. Rows are parted by ranges of the id on disk; what is in memory is one
range, about 16,000 documents.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.atomic import sweep, written
from pipelines.cuts import cut_totals
from pipelines.dataset import MANIFEST, WORK, Dataset, file_entry, write_json
from pipelines.document import id_words
from pipelines.engines.stages import parquet_writer
from pipelines.inputs import INPUTS, SCHEMA, inputs_of
from pipelines.layout import ERROR_RULE, TAKEN_DOWN
from pipelines.output_folder import locked
from pipelines.progress import progress
from pipelines.statistics import KEPT, Statistics, skipped

RANGE_DOCUMENTS = 16_384
"""Documents in a range on average, at most."""
OPEN_RANGES = 256
ROW_GROUP = 2_048
ROWS_OF = {
    "data": ("data", "revivals"),
    "ledger": ("ledger", "amendments"),
    "dropped": ("dropped", "retractions", "redropped"),
}
"""Where the rows of a kind come from; of a document those of the last snapshot count."""


def compact(datasets: Sequence[str | Path], out: str | Path) -> dict[str, Any]:
    """Writes what a chain of snapshots says as one dataset and returns its manifest.

    Args:
        datasets: folders: a dataset, or all snapshots of an index in order.
        out: a new folder.

    Raises:
        ValueError: the datasets are no whole chain, or `out` holds something.
    """
    chain, out = [Dataset(path) for path in datasets], Path(out)
    _check_chain(chain)
    if out.exists() and {path.name for path in out.iterdir()} - {WORK, *ROWS_OF, INPUTS}:
        raise ValueError(f"{out} exists and holds something. Give an empty or a new folder.")
    total = sum(dataset.manifest["documents_in"] for dataset in chain)
    ranges = 1 << max(0, (total - 1) // RANGE_DOCUMENTS).bit_length()
    statistics, files = Statistics(), []
    with locked(out), progress("compact", ranges, "range") as bar:
        sweep(out)
        for first in range(0, ranges, OPEN_RANGES):
            chosen = range(first, min(first + OPEN_RANGES, ranges))
            folder = out / WORK / "compact"
            shutil.rmtree(folder, ignore_errors=True)
            _part(chain, folder, chosen, ranges)
            for number in chosen:
                files += _write_range(chain[0], folder, number, out, statistics)
                bar.advance(1)
        files.append(_write_inputs(chain, out))
        manifest = _manifest(chain, statistics.counts, files)
        write_json(out / MANIFEST, manifest)
        shutil.rmtree(out / WORK)
    return manifest


def _check_chain(chain: Sequence[Dataset]) -> None:
    for number, dataset in enumerate(chain):
        before = dataset.manifest.get("against", {}).get("snapshots", [])
        wanted = [earlier.identity for earlier in chain[:number]]
        if before != wanted:
            raise ValueError(
                f"{dataset.path} was made against {len(before)} snapshots, and it was given after "
                f"{len(wanted)}"
                + ("" if len(before) != len(wanted) else " others")
                + ". Give all snapshots of one index, in the order in which they were made."
            )


def _part(chain: Sequence[Dataset], folder: Path, chosen: range, ranges: int) -> None:
    """Writes the rows of some ranges of the id to a file for each range and kind, in order."""
    for kind, sources in ROWS_OF.items():
        (folder / kind).mkdir(parents=True)
        with ExitStack() as stack:
            writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
            for batch in (b for d in chain for source in sources for b in d.batches(source)):
                number = _range(batch.column("id"), ranges)
                for mine in np.unique(number).tolist():
                    if mine not in chosen:
                        continue
                    if mine not in writers:
                        sink = stack.enter_context(pa.OSFile(str(folder / kind / str(mine)), "wb"))
                        writer = pa.ipc.new_stream(sink, batch.schema)
                        writers[mine] = stack.enter_context(writer)
                    writers[mine].write_batch(batch.filter(pa.array(number == mine)))


def _range(ids: pa.Array, ranges: int) -> np.ndarray:
    bits = ranges.bit_length() - 1
    top = id_words(ids)[:, 0]
    return (top >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(ids), np.int64)


def _write_range(
    first: Dataset, folder: Path, number: int, out: Path, statistics: Statistics
) -> list[dict[str, Any]]:
    """Writes the files of one range and returns their entries."""
    tables = {kind: _last_rows(folder / kind / str(number)) for kind in ROWS_OF}
    ledger = tables["ledger"]
    if ledger is None:
        return []
    for batch in ledger.to_batches():
        statistics.add(batch)
    kept = ledger.column("id").filter(pc.is_null(ledger.column("dropped_by")))
    entries = []
    for kind, table in tables.items():
        if table is not None and kind != "ledger":
            mine = pc.is_in(table.column("id"), kept)
            table = table.filter(mine if kind == "data" else pc.invert(mine))
        if table is None or not table.num_rows:
            continue
        path = out / kind / f"{number:05d}.parquet"
        with written(path) as temporary, parquet_writer(temporary, table.schema) as writer:
            writer.write_table(table, ROW_GROUP)
        entries.append(file_entry(out, path, table.num_rows))
    return entries


def _last_rows(path: Path) -> pa.Table | None:
    """Returns the last row of each document, in order of id."""
    if not path.exists():
        return None
    with pa.OSFile(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all().combine_chunks()
    words = id_words(table.column("id").combine_chunks())
    order = np.lexsort((np.arange(len(words)), words[:, 1], words[:, 0]))
    last = np.ones(len(order), bool)
    last[:-1] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    return table.take(pa.array(order[last])).combine_chunks()


def _write_inputs(chain: Sequence[Dataset], out: Path) -> dict[str, Any]:
    rows = [row | {"unit": 0} for dataset in chain for row in inputs_of(dataset.path)]
    rows.sort(key=lambda row: (row["source"], row["path"], row["start"]))
    with written(out / INPUTS) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary, compression="zstd")
    return file_entry(out, out / INPUTS, len(rows))


def _manifest(
    chain: Sequence[Dataset], counts: dict[str, Any], files: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns a manifest that says nothing of how the dataset came about."""
    base = chain[0].manifest
    outcomes: dict[str, list[int]] = {}
    for source in counts.values():
        for rule, (documents, size) in source["outcome"].items():
            total = outcomes.setdefault(rule, [0, 0])
            total[0] += documents
            total[1] += size
    kept = outcomes.get(KEPT, [0, 0])
    documents = sum(total[0] for total in outcomes.values())
    records: Counter[str] = Counter()
    for dataset in chain:
        records.update(dataset.manifest["records"])
    sources = {source["name"] for dataset in chain for source in dataset.manifest["sources"]}
    files = sorted(files, key=lambda entry: entry["path"])
    return {
        "gristmill": base["gristmill"],
        "recipe": base["recipe"],
        "sources": [_source(name, counts.get(name)) for name in sorted(sources)],
        "documents_in": documents,
        "kept": kept[0],
        "dropped": documents - kept[0],
        "bytes_in": sum(total[1] for total in outcomes.values()),
        "bytes_kept": kept[1],
        "records": dict(sorted(records.items())),
        "rules": list(_rules(chain, counts, outcomes)),
        "signals": base["signals"],
        "cuts": [cut | cut_totals(counts, cut["name"]) for cut in base["cuts"]],
        "unread_files": sum(dataset.manifest["unread_files"] for dataset in chain),
        "unread_examples": [],
        "warnings": [],
        "removal": {},
        "files": files,
        "identity": hashlib.sha256(
            "".join(entry["sha256"] for entry in files).encode()
        ).hexdigest(),
    }


def _source(name: str, counts: dict[str, Any] | None) -> dict[str, Any]:
    if counts is None:
        counts = {"documents": 0, "bytes": 0, "outcome": {}}
    kept = counts["outcome"].get(KEPT, [0, 0])
    return {
        "name": name,
        "root": "",
        "documents_in": counts["documents"],
        "bytes_in": counts["bytes"],
        "kept": kept[0],
        "bytes_kept": kept[1],
    }


def _rules(
    chain: Sequence[Dataset], counts: dict[str, Any], outcomes: dict[str, list[int]]
) -> Iterator[dict[str, Any]]:
    """Yields the rules of all snapshots, those of readers by name, with their counts."""
    rules = {rule["name"]: rule for dataset in chain for rule in dataset.manifest["rules"]}
    errors = sorted(name for name in rules if name.startswith(ERROR_RULE))
    down = [name for name in rules if name == TAKEN_DOWN]  # a later snapshot may bring it in
    others = [name for name in rules if name not in (*errors, *down)]
    # an unreadable record may have been taken down since
    for name in [*(name for name in errors if name in outcomes), *down, *others]:
        dropped = outcomes.get(name, [0, 0])
        broken = sum(source["broken"].get(name, 0) for source in counts.values())
        numbers: dict[str, Any] = {"dropped": dropped[0], "dropped_bytes": dropped[1]}
        if "skipped" in rules[name]:
            numbers["skipped"] = skipped(counts, name)
        yield rules[name] | numbers | {"broken": max(broken, dropped[0])}
