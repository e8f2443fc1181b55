"""Held-out documents by what the curated dataset says of them: source, language, domain, kind.

A token dataset knows the ids of its documents and nothing else; the rows of the datasets that it
was made of have the columns.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mixtures.holdout import HeldOut
from pipelines.dataset import Dataset
from pipelines.removal import domains

DOMAIN = "domain"
NO_VALUE = "(none)"
OTHERS = "(others)"


def grouped(
    documents: Sequence[HeldOut], datasets: Sequence[Path], column: str, max_groups: int = 30
) -> list[HeldOut]:
    """Returns documents under the value of a column in place of their part.

    Args:
        documents: held-out documents.
        datasets: the curated datasets that hold them all.
        column: of the datasets; "domain" is the host of `url`.
        max_groups: values that are kept, those with the most text; the others are "(others)" and
            documents without a value "(none)".

    Raises:
        ValueError: a dataset has no such column, or none has a document.
    """
    wanted = pa.array(sorted({document.document_id for document in documents}), pa.string())
    values: dict[str, str] = {}
    for dataset in datasets:
        for path in Dataset(dataset).data_files():
            values |= _values(path, column, wanted)
    missing = [d.document_id for d in documents if d.document_id not in values]
    if missing:
        raise ValueError(
            f"evaluate: {len(missing):,} of {len(documents):,} held-out documents are in none of "
            f"{', '.join(map(str, datasets))} (first: {missing[0]}). Give the datasets of all "
            "parts of the mixture"
        )
    sizes: dict[str, int] = {}
    for document in documents:
        value = values[document.document_id]
        sizes[value] = sizes.get(value, 0) + document.size_bytes
    kept = set(sorted(sizes, key=lambda value: (-sizes[value], value))[:max_groups])
    named = [(values[document.document_id], document) for document in documents]
    return [replace(d, part=value if value in kept else OTHERS) for value, d in named]


def _values(path: Path, column: str, wanted: pa.Array) -> dict[str, str]:
    """Returns the column's value, as text, of each wanted document of a data file."""
    there = pq.read_schema(path).names
    read = "url" if column == DOMAIN and DOMAIN not in there else column
    if read not in there:
        raise ValueError(f"evaluate: {path} has no column {read!r}; it has: {', '.join(there)}")
    table = pq.read_table(path, columns=["id", read])
    table = table.filter(pc.is_in(table["id"], wanted))
    found = domains(table[read]) if read != column else table[read]
    texts = pc.fill_null(pc.cast(found, pa.string()), NO_VALUE)
    return dict(zip(table["id"].to_pylist(), texts.to_pylist(), strict=True))
