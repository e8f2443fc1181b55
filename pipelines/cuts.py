"""What steps cut out of texts, from a dataset's own files: counts, spans, and who holds the rest.

A step that cuts names its spans in the ledger: NAME_spans beside n_NAME_spans and NAME_bytes.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from pipelines.dataset import Dataset, rows_with

SPANS = "_spans"
CONTEXT_BYTES = 60
"""Of what stays before and after a cut."""
SHOWN = 20
"""Spans of a document that are described, unless told otherwise."""


def cut_names(schema: pa.Schema) -> list[str]:
    """Returns the names of the cuts of which a ledger tells, in order."""
    found = []
    for name in schema.names:
        cut = name.removesuffix(SPANS)
        if cut != name and f"n_{name}" in schema.names and f"{cut}_bytes" in schema.names:
            found.append(cut)
    return found


def cut_totals(counts: dict[str, Any], name: str) -> dict[str, int]:
    """Returns in how many documents and spans a step cut how many bytes, of `Statistics` counts."""
    rows = [source["cut"].get(name, [0, 0, 0]) for source in counts.values()]
    sums = (sum(column) for column in zip(*rows, strict=True)) if rows else (0, 0, 0)
    return dict(zip(("documents", "spans", "bytes"), sums, strict=True))


def document_cuts(
    dataset: Dataset, ledger: dict[str, Any], text: str | None, number: int = SHOWN
) -> list[dict[str, Any]]:
    """Returns what was cut out of a document, step by step.

    Args:
        dataset: the dataset.
        ledger: the document's ledger row.
        text: what is left of it, where that was kept.
        number: how many spans of each step are described.

    Returns:
        `name`, `step`, `spans` and `bytes` (how many) and `shown`, of the first spans: `start` and
        `end` (bytes of the text as the step saw it) and what else the ledger says; where the first
        occurrence is in a document of the dataset its `source` and `path`; and if no later step
        changed the text what stayed `before` and `after` the cut.
    """
    cuts = []
    for cut in dataset.manifest["cuts"]:
        spans = ledger.get(cut["name"] + SPANS) or []
        if not spans:
            continue
        shown = spans[:number]
        holders = _places(dataset, (span.get("matched_id") for span in shown))
        data = text.encode() if text is not None and cut["last"] else None
        gone, described = 0, []
        for span in shown:
            more = holders.get(span.get("matched_id"), {})
            if data is not None:
                at = span["start"] - gone
                more = more | {
                    "before": data[max(0, at - CONTEXT_BYTES) : at].decode(errors="ignore"),
                    "after": data[at : at + CONTEXT_BYTES].decode(errors="ignore"),
                }
            gone += span["end"] - span["start"]
            described.append(span | more)
        size = ledger[f"{cut['name']}_bytes"]
        numbers = {"spans": len(spans), "bytes": size, "shown": described}
        cuts.append({"name": cut["name"], "step": cut["step"]} | numbers)
    return cuts


def _places(dataset: Dataset, ids: Iterable[str | None]) -> dict[str | None, dict[str, Any]]:
    wanted = {document_id for document_id in ids if document_id}
    if not wanted:
        return {}
    found = rows_with(dataset.files("ledger"), "id", wanted, ["id", "source", "origin"])
    return {r["id"]: {"source": r["source"], "path": r["origin"]["path"]} for r in found}
