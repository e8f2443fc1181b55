"""Why a document was kept or dropped, and examples of a rule, from a dataset's own files."""

import heapq
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.cuts import document_cuts
from pipelines.dataset import Dataset
from pipelines.dedup.compare import Comparison, compare
from pipelines.dedup.folds import word_folds
from pipelines.layout import FAILS

SIMILARITY_STEPS = ("FuzzyDedup", "SemanticDedup")
"""Steps with a min_similarity; of the first one the shingles can be shown."""


def why(dataset: Dataset, document_id: str) -> dict[str, Any]:
    """Explains one document.

    Args:
        dataset: the dataset.
        document_id: 32 hexadecimal digits, or enough of the first ones to be unique.

    Returns:
        `id`, `outcome` ("kept" or the rule), `ledger` (the whole row), `rules` (for each rule its
        question, the document's value and whether it broke it, null where it was not asked),
        `text` (null where it was not kept), `cuts` (what was cut out of it, as
        `pipelines.cuts.document_cuts` returns it), `kept_copy` (for a duplicate the document that
        stayed) and `comparison` (for a near-duplicate whose texts are there: `unit` and `size` of
        its shingles, `spans` and `kept_copy_spans` of the shared ones as [start, stop) code
        points, the numbers `shared` and `shingles`, and their quotient `jaccard`; else null).

    Raises:
        ValueError: no document has the id, or several start with it.
    """
    whole = _whole_id(dataset, document_id)
    ledger = dataset.find("ledger", whole) or dataset.find("amendments", whole)
    if ledger is None:
        raise ValueError(f"{dataset.path}: no document has id {document_id}")
    document = _document(dataset, ledger["id"])
    rules = []
    for rule in dataset.manifest["rules"]:
        asked = ledger.get(FAILS + rule["name"])
        if asked is None and rule["name"] != ledger["dropped_by"]:
            continue
        value = ledger.get(rule.get("column", ""))
        rules.append(rule | {"value": value, "broke": bool(asked) or asked is None})
    matched = ledger.get("matched_id")
    kept_copy = _document(dataset, matched) if matched else None
    found = compared(dataset, ledger)
    return {
        "id": ledger["id"],
        "outcome": ledger["dropped_by"] or "kept",
        "ledger": ledger,
        "rules": rules,
        "text": document and document["text"],
        "cuts": document_cuts(dataset, ledger, document["text"] if document else None),
        "kept_copy": kept_copy,
        "comparison": found
        and {
            "unit": found.unit,
            "size": found.size,
            "spans": found.left.spans(),
            "kept_copy_spans": found.right.spans(),
            "shared": found.num_shared,
            "shingles": found.num_shingles,
            "jaccard": found.jaccard,
        },
    }


def compared(dataset: Dataset, ledger: dict[str, Any]) -> Comparison | None:
    """Compares a near-duplicate with the kept copy by the shingles of the step that dropped it.

    Returns:
        The comparison, the dropped text at the left; none where the rule that dropped the document
        does not compare shingles, or a text is not there.
    """
    step = shingle_step(dataset.manifest, ledger["dropped_by"])
    if step is None:
        return None
    document = _document(dataset, ledger["id"])
    kept_copy = _document(dataset, ledger["matched_id"])
    texts = [row[step["column"]] if row else None for row in (document, kept_copy)]
    return compare_texts(step, *texts)


def compare_texts(step: dict[str, Any], left: str | None, right: str | None) -> Comparison | None:
    """Compares two texts as `shingle_step` says; none where one is not there."""
    if left is None or right is None:
        return None
    shingles = step["shingles"]
    folds = word_folds(shingles["fold_digits"])
    return compare(left, right, shingles["unit"], shingles["size"], folds)


def shingle_step(manifest: dict[str, Any], rule: str | None) -> dict[str, Any] | None:
    """Returns the parameters of the step that drops near-duplicates by a rule, else none."""
    step = similarity_step(manifest, rule)
    return step if step and "shingles" in step else None


def similarity_step(manifest: dict[str, Any], rule: str | None) -> dict[str, Any] | None:
    """Returns the parameters of the step that drops similar documents by a rule, else none."""
    name = {known["name"]: known["step"] for known in manifest["rules"]}.get(rule)
    if name not in SIMILARITY_STEPS:
        return None
    found = manifest["recipe"]["steps"]
    return next(step["parameters"] for step in found if step["name"] == name)


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
    """Returns a document of the dataset, or of an earlier one if this one changes it.

    The kept copy of a duplicate may have been dropped by a later rule.
    """
    kinds = ("data", "dropped", "retractions", "revivals", "redropped")
    found = (dataset.find(kind, document_id) for kind in kinds)
    return next((document for document in found if document), None)


def _dropped_ids(dataset: Dataset, rule: str) -> Iterator[str]:
    for path in dataset.files("dropped"):
        table = pq.read_table(path, columns=["id", "dropped_by"])
        yield from table.filter(pc.equal(table.column("dropped_by"), rule)).column("id").to_pylist()


def _whole_id(dataset: Dataset, start: str) -> str:
    if len(start) == 32:
        return start
    found: list[str] = []
    for path in (*dataset.files("ledger"), *dataset.files("amendments")):
        ids = pq.read_table(path, columns=["id"]).column("id")
        found += ids.filter(pc.starts_with(ids, start)).to_pylist()
    if len(found) != 1:
        raise ValueError(
            f"{dataset.path}: {len(found)} documents have an id that starts with {start!r}"
            + (f", for example {found[0]} and {found[1]}" if found else "")
        )
    return found[0]
