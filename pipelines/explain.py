"""Why a document was kept or dropped, and examples of a rule, from a dataset's own files."""

import heapq
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset import Dataset
from pipelines.layout import FAILS


def why(dataset: Dataset, document_id: str) -> dict[str, Any]:
    """Explains one document.

    Args:
        dataset: the dataset.
        document_id: 32 hexadecimal digits, or enough of the first ones to be unique.

    Returns:
        `id`, `outcome` ("kept" or the rule), `ledger` (the whole row), `rules` (for each rule its
        question, the document's value and whether it broke it, null where it was not asked),
        `text` (null where it was not kept) and `kept_copy` (for a duplicate the document that
        stayed).

    Raises:
        ValueError: no document has the id, or several start with it.
    """
    ledger = dataset.find("ledger", _whole_id(dataset, document_id))
    if ledger is None:
        raise ValueError(f"{dataset.path}: no document has id {document_id}")
    document = dataset.find("dropped" if ledger["dropped_by"] else "data", ledger["id"])
    rules = []
    for rule in dataset.manifest["rules"]:
        asked = ledger.get(FAILS + rule["name"])
        if asked is None and rule["name"] != ledger["dropped_by"]:
            continue
        value = ledger.get(rule.get("column", ""))
        rules.append(rule | {"value": value, "broke": bool(asked) or asked is None})
    matched = ledger.get("matched_id")
    return {
        "id": ledger["id"],
        "outcome": ledger["dropped_by"] or "kept",
        "ledger": ledger,
        "rules": rules,
        "text": document and document["text"],
        "kept_copy": _document(dataset, matched) if matched else None,
    }


def examples(dataset: Dataset, rule: str, number: int) -> list[dict[str, Any]]:
    """Returns documents that a rule dropped: those with the smallest ids, so always the same.

    Raises:
        ValueError: the dataset has no such rule.
    """
    names = [known["name"] for known in dataset.manifest["rules"]]
    if rule not in names:
        raise ValueError(f"{dataset.path}: no rule is called {rule!r}; rules: {', '.join(names)}")
    found = heapq.nsmallest(number, _dropped_ids(dataset, rule))
    return [row for document_id in found if (row := dataset.find("dropped", document_id))]


def _document(dataset: Dataset, document_id: str) -> dict[str, Any] | None:
    """Returns a document; the kept copy of a duplicate may have been dropped by a later rule."""
    return dataset.find("data", document_id) or dataset.find("dropped", document_id)


def _dropped_ids(dataset: Dataset, rule: str) -> Iterator[str]:
    for path in dataset.files("dropped"):
        table = pq.read_table(path, columns=["id", "dropped_by"])
        yield from table.filter(pc.equal(table.column("dropped_by"), rule)).column("id").to_pylist()


def _whole_id(dataset: Dataset, start: str) -> str:
    if len(start) == 32:
        return start
    found: list[str] = []
    for path in dataset.files("ledger"):
        ids = pq.read_table(path, columns=["id"]).column("id")
        found += ids.filter(pc.starts_with(ids, start)).to_pylist()
    if len(found) != 1:
        raise ValueError(
            f"{dataset.path}: {len(found)} documents have an id that starts with {start!r}"
            + (f", for example {found[0]} and {found[1]}" if found else "")
        )
    return found[0]
