"""Counts over ledger rows, for the manifest, the funnel and the checks before commit."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cuts import cut_names
from pipelines.layout import FAILS, LEDGER_START, SKIPPED

KEPT = "kept"


class Statistics:
    """Adds up ledger batches; `counts` is plain data, so that it can be written and merged.

    counts[source] = {
        "documents": rows, "bytes": text bytes,
        "outcome": {rule or "kept": [documents, text bytes]},
        "broken": {rule: documents}, "valid": {signal: documents where it is not null},
        "skipped": {rule: [documents, comparisons left out]},
        "cut": {name: [documents, spans, bytes]}}
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, Any]] = {}

    def add(self, ledger: pa.RecordBatch) -> None:
        """Counts the rows of a ledger batch."""
        for source in pc.unique(ledger.column("source")).to_pylist():
            self._add(source, ledger.filter(pc.equal(ledger.column("source"), source)))

    def _add(self, source: str, ledger: pa.RecordBatch) -> None:
        start = {"documents": 0, "bytes": 0, "outcome": {}}
        start |= {"broken": {}, "valid": {}, "skipped": {}, "cut": {}}
        counts = self.counts.setdefault(source, start)
        counts["documents"] += ledger.num_rows
        counts["bytes"] += pc.sum(ledger.column("text_bytes")).as_py() or 0
        by = pc.fill_null(ledger.column("dropped_by"), KEPT)
        groups = pa.table({"by": by, "bytes": ledger.column("text_bytes")}).group_by("by")
        for row in groups.aggregate([("bytes", "count"), ("bytes", "sum")]).to_pylist():
            outcome = counts["outcome"].setdefault(row["by"], [0, 0])
            outcome[0] += row["bytes_count"]
            outcome[1] += row["bytes_sum"]
        for name in cut_names(ledger.schema):
            total = counts["cut"].setdefault(name, [0, 0, 0])
            spans, size = (ledger.column(column) for column in (f"n_{name}_spans", f"{name}_bytes"))
            total[0] += pc.sum(pc.greater(spans, 0)).as_py() or 0
            total[1] += pc.sum(spans).as_py() or 0
            total[2] += pc.sum(size).as_py() or 0
        for name in ledger.schema.names:
            column = ledger.column(name)
            if name.startswith(FAILS):
                broken = counts["broken"]
                rule = name.removeprefix(FAILS)
                broken[rule] = broken.get(rule, 0) + (pc.sum(column).as_py() or 0)
            elif (
                name.endswith(SKIPPED) and FAILS + name.removesuffix(SKIPPED) in ledger.schema.names
            ):
                total = counts["skipped"].setdefault(name.removesuffix(SKIPPED), [0, 0])
                total[0] += pc.sum(pc.greater(column, 0)).as_py() or 0
                total[1] += pc.sum(column).as_py() or 0
            elif name not in LEDGER_START.names:
                valid = counts["valid"]
                valid[name] = valid.get(name, 0) + len(column) - column.null_count


def merged(parts: Iterable[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Adds up the counts of several `Statistics`."""
    total: dict[str, dict[str, Any]] = {}
    for part in parts:
        for source, counts in part.items():
            total[source] = _sum(total[source], counts) if source in total else counts
    return total


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        total = dict(one)
        for key, value in other.items():
            total[key] = _sum(total[key], value) if key in total else value
        return total
    if isinstance(one, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    return one + other


def skipped(counts: dict[str, Any], rule: str) -> dict[str, int]:
    """Returns the documents that a rule did not compare with all it might have, and how often."""
    pairs = [source["skipped"].get(rule, [0, 0]) for source in counts.values()] or [[0, 0]]
    documents, comparisons = map(sum, zip(*pairs, strict=True))
    return {"documents": documents, "comparisons": comparisons}
