"""What the report says of a dataset: funnel, signals, examples of each rule, duplicates.

Counts come from the manifest; the rest from one pass over the ledger, one over the ids of the
dropped documents and the row groups of the documents that are shown, a row group at a time: memory
is a row group and what the page shows (a few MB for any dataset), 100,000 documents take seconds.
"""

import heapq
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.charts import Categories, Histogram, Question, funnel, precise
from pipelines.cuts import document_cuts
from pipelines.dataset import Dataset, rows_with
from pipelines.dedup.compare import rows
from pipelines.dedup.peer_decisions import decision_columns, peer_decisions
from pipelines.engines.stretch import SAMPLE_SHARE, sampled
from pipelines.explain import compare_texts, shingle_step, similarity_step
from pipelines.layout import COMPONENT_ID, ERROR_RULE, FAILS
from pipelines.limits import DIMENSIONS
from pipelines.statistics import Statistics

EXAMPLES = 5
TEXT_CHARACTERS = 1_500
BORDERLINE = 12
PLACES = 12
"""Differences of a pair that are shown."""
REMOVAL_ROWS = 10
GROUPS = 12
COPIES = 6
CUT_EXAMPLES, CUT_SPANS = 4, 6
"""Documents of a step that cuts, and spans of each."""
SOURCES = 40
SAMPLE_FILES = 32
SAMPLE_ROWS = 2_000


def dataset_page(dataset: Dataset, where: str) -> dict[str, Any]:
    """Returns all that the page says about a dataset; `where` is its folder as the page sees it."""
    manifest = dataset.manifest
    ledger = _Ledger(dataset)
    rules = []
    for number, rule in enumerate(manifest["rules"]):
        question = None
        if "comparison" in rule:
            question = f"{rule['column']} {rule['comparison']} {precise(rule['threshold'])}"
        asked = FAILS + rule["name"] in ledger.schema.names
        more = {"anchor": f"rule-{number}", "question": question, "asked": asked}
        rules.append(rule | more | {"alone": ledger.alone[rule["name"]]})
    files = {}
    for kind in ("data", "ledger", "dropped"):
        sizes = [e["bytes"] for e in manifest["files"] if e["path"].startswith(f"{kind}/")]
        files[kind] = {"number": len(sizes), "bytes": sum(sizes)}
    examples = _examples(dataset)
    return {
        "manifest": manifest,
        "where": where,
        "quoted": shlex.quote(where),
        "rules": rules,
        "funnel": funnel(rules, manifest["documents_in"], manifest["bytes_in"], None),
        "sources": [
            source | {"funnel": funnel(rules, source["documents_in"], source["bytes_in"], outcome)}
            for source in manifest["sources"][:SOURCES]
            if (outcome := ledger.statistics.counts[source["name"]]["outcome"])
        ],
        "signals": ledger.signals(),
        "undrawn": ledger.undrawn,
        "examples": [rule | {"documents": examples.get(rule["name"], [])} for rule in rules],
        "removal": [
            found | {"by": by, "shown": found["worst"][:REMOVAL_ROWS]}
            for by in DIMENSIONS
            if (found := manifest.get("removal", {}).get(by)) and found["groups"]
        ],
        "cuts": _cuts(dataset, ledger.cut),
        "duplicates": [
            _groups(dataset, rule["name"], ledger.groups[rule["name"]])
            | {"removed": rule["dropped"], "skipped": rule.get("skipped")}
            | _near(dataset, rule["name"], ledger.near.get(rule["name"]))
            for rule in rules
            if rule["name"] in ledger.groups
        ],
        "closures": _closures(dataset, ledger.schema.names),
        "errors": [rule for rule in rules if rule["name"].startswith(ERROR_RULE)],
        "files": files,
        "characters": TEXT_CHARACTERS,
    }


class _Ledger:
    """What one pass over a dataset's ledger finds."""

    def __init__(self, dataset: Dataset) -> None:
        self.statistics = Statistics()
        self.alone: Counter[str] = Counter()
        """Documents that broke this rule and no other one that was asked."""
        self.groups: dict[str, _Groups] = {}
        self.near: dict[str, _Near] = {}
        self.undrawn: list[str] = []
        self._manifest = dataset.manifest
        self.schema = pq.read_schema(dataset.files("ledger")[0])
        self._charts = self._make_charts(dataset)
        for name in self.schema.names:
            if name.endswith("_cluster_size") and name not in self._manifest["signals"]:
                rule = name.removesuffix("_cluster_size")
                self.groups[rule] = _Groups()
                if step := similarity_step(self._manifest, rule):
                    self.near[rule] = _Near(step)
        self.cut: dict[str, list[tuple[int, str]]] = {
            cut["name"]: [] for cut in self._manifest["cuts"]
        }
        """(-bytes, id) of the kept documents that lost most, ascending."""
        self._fails = [name for name in self.schema.names if name.startswith(FAILS)]
        columns = ["id", "source", "text_bytes", "dropped_by", *self._fails]
        columns += [name for name in self._charts if name != "text_bytes"]
        columns += [f"{rule}_cluster_size" for rule in self.groups]
        columns += ["similarity"] if self.near else []
        columns += [f"{name}_bytes" for name in self.cut if f"{name}_bytes" not in columns]
        columns += [name for cut in self.cut for name in (f"n_{cut}_spans",) if name not in columns]
        for batch in dataset.batches("ledger", columns):
            self._add(batch)

    def _make_charts(self, dataset: Dataset) -> dict[str, Histogram | Categories]:
        names = [name for name in self.schema.names if name in self._manifest["signals"]]
        charts: dict[str, Histogram | Categories] = {}
        sample = _sample(dataset, ["text_bytes", *names])
        for name in ("text_bytes", *names):
            kind = self.schema.field(name).type
            questions = [
                Question(rule["name"], rule["comparison"], rule["threshold"], rule["broken"])
                for rule in self._manifest["rules"]
                if rule.get("column") == name
            ]
            if pa.types.is_boolean(kind) or pa.types.is_string(kind):
                charts[name] = Categories(questions)
            elif pa.types.is_integer(kind) or pa.types.is_list(kind):
                charts[name] = Histogram(sample[name], questions, integer=True)
            elif pa.types.is_floating(kind):
                charts[name] = Histogram(sample[name], questions, integer=False)
            else:
                self.undrawn.append(f"{name} ({kind})")
        return charts

    def _add(self, batch: pa.RecordBatch) -> None:
        self.statistics.add(batch)
        dropped = pc.is_valid(batch.column("dropped_by")).to_numpy(zero_copy_only=False)
        for name, chart in self._charts.items():
            chart.add(batch.column(name), dropped)
        broken = np.zeros(batch.num_rows, np.int32)
        for name in self._fails:
            broken += pc.fill_null(batch.column(name), False).to_numpy(zero_copy_only=False)
        alone = batch.column("dropped_by").filter(pa.array(broken == 1))
        for pair in pc.value_counts(alone.drop_null()).to_pylist():
            self.alone[pair["values"]] += pair["counts"]
        for cut, most in self.cut.items():
            size = pc.fill_null(batch.column(f"{cut}_bytes"), 0)
            mine = pc.and_(pc.greater(size, 0), pc.is_null(batch.column("dropped_by")))
            ids = batch.column("id").filter(mine).to_pylist()
            lost = pc.negate(size.filter(mine)).to_pylist()
            self.cut[cut] = heapq.nsmallest(CUT_EXAMPLES, [*most, *zip(lost, ids, strict=True)])
        for rule, groups in self.groups.items():
            groups.add(batch, rule)
        for rule, near in self.near.items():
            near.add(batch, rule)

    def signals(self) -> list[dict[str, Any]]:
        """Returns what the page draws: the size of the texts, then the signals in recipe order."""
        size = {"step": "reader", "text": "as it was judged"}
        rows = []
        for name, chart in self._charts.items():
            row = {"name": name, "chart": chart, "histogram": isinstance(chart, Histogram)}
            row["counted"] = pa.types.is_list(self.schema.field(name).type)
            rows.append(row | self._manifest["signals"].get(name, size) | chart.drawing())
        return rows


def _sample(dataset: Dataset, columns: list[str]) -> pa.Table:
    """Returns rows of evenly spaced ledger files and row groups, enough to settle axes."""
    paths = dataset.files("ledger")
    parts = []
    for path in paths[:: -(-len(paths) // SAMPLE_FILES)]:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            groups = range(file.num_row_groups)
            for group in groups[:: -(-len(groups) * len(paths) // SAMPLE_FILES) or 1]:
                parts.append(file.read_row_group(group, columns).slice(0, SAMPLE_ROWS))
    return pa.concat_tables(parts)


class _Groups:
    """The largest groups of duplicates of one global step. Memory: their number."""

    def __init__(self) -> None:
        self.sizes: Counter[int] = Counter()
        self.largest: list[tuple[int, str]] = []
        """(-size, id of the kept document), ascending."""

    def add(self, ledger: pa.RecordBatch, rule: str) -> None:
        """Finds the kept documents of groups: each stands for its group."""
        size = ledger.column(f"{rule}_cluster_size")
        kept = pc.and_(pc.greater(size, 1), pc.invert(ledger.column(FAILS + rule)))
        sizes = size.filter(kept).to_pylist()
        self.sizes.update(sizes)
        ids = ledger.column("id").filter(kept).to_pylist()
        found = [(-size, document_id) for size, document_id in zip(sizes, ids, strict=True)]
        self.largest = heapq.nsmallest(GROUPS, [*self.largest, *found])


class _Near:
    """Similarities of what one step dropped as similar, and those just above its limit."""

    def __init__(self, step: dict[str, Any]) -> None:
        self.step = step
        axis = pa.chunked_array([[step["min_similarity"], 1.0]], pa.float64())
        self.chart = Histogram(axis, [], integer=False)
        self.lowest: list[tuple[float, str]] = []
        """(similarity, id of the dropped document), ascending."""

    def add(self, ledger: pa.RecordBatch, rule: str) -> None:
        """Counts a batch's similarities."""
        mine = ledger.filter(pc.fill_null(pc.equal(ledger.column("dropped_by"), rule), False))
        similarity = mine.column("similarity")
        self.chart.add(similarity, np.ones(len(similarity), bool))
        found = zip(similarity.to_pylist(), mine.column("id").to_pylist(), strict=True)
        self.lowest = heapq.nsmallest(BORDERLINE, [*self.lowest, *found])


def _near(dataset: Dataset, rule: str, found: _Near | None) -> dict[str, Any]:
    """Returns the histogram of similarities and the borderline pairs; none for an exact rule."""
    if found is None or not found.lowest:
        return {"near": None}
    ids = [document_id for _, document_id in found.lowest]
    ledger = {row["id"]: row for row in rows_with(dataset.files("ledger"), "id", ids)}
    texts = _texts(dataset, [*ids, *(row["matched_id"] for row in ledger.values())])
    pairs = []
    for document_id in ids:
        row = ledger[document_id]
        match = row["matched_id"]
        marks = _marks(found.step, texts[document_id], texts[match])
        both = {"text": texts[document_id], "kept_text": texts[match]}
        pairs.append(marks | both | {"dropped": row, "kept_id": match})
    chart = {"name": f"similarity of {rule}s", "chart": found.chart} | found.chart.drawing()
    return {"near": {"chart": chart, "pairs": pairs, "step": found.step}}


def _marks(step: dict[str, Any] | None, left: str | None, right: str | None) -> dict[str, Any]:
    """Returns where two texts differ, with marks; `places` is none where that cannot be shown."""
    comparison = None
    if step and "shingles" in step and step["column"] == "text":
        comparison = compare_texts(step, left, right)
    if comparison is None:
        return {"places": None}
    places, more = rows(comparison, PLACES)
    return {"places": places, "more": more, "shared": comparison.num_shared} | {
        "shingles": comparison.num_shingles
    }


def _examples(dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    """Returns the examples of each rule: the smallest ids, those whose text was kept first."""
    some = dataset.manifest["recipe"].get("keep_dropped") == "sample"
    smallest: dict[str, list[tuple[bool, str]]] = {}
    for batch in dataset.batches("dropped", ["id", "dropped_by"]):
        for rule in pc.unique(batch.column("dropped_by")).to_pylist():
            ids = batch.column("id").filter(pc.equal(batch.column("dropped_by"), rule))
            absent = (
                pc.invert(sampled(ids, SAMPLE_SHARE)).to_pylist() if some else [False] * len(ids)
            )
            found = [*smallest.get(rule, []), *zip(absent, ids.to_pylist(), strict=True)]
            smallest[rule] = heapq.nsmallest(EXAMPLES, found)
    wanted = {rule: [document_id for _, document_id in ids] for rule, ids in smallest.items()}
    every = [document_id for ids in wanted.values() for document_id in ids]
    ledgers = {row["id"]: row for row in rows_with(dataset.files("ledger"), "id", every)}
    texts = _texts(dataset, every)
    return {
        rule: [_document(dataset, ledgers[document_id], texts) for document_id in ids]
        for rule, ids in wanted.items()
    }


def _document(
    dataset: Dataset, ledger: dict[str, Any], texts: dict[str, str | None]
) -> dict[str, Any]:
    """Returns a document as an example: its ledger row, its text, and what else it broke."""
    broke = [
        rule | {"value": ledger[rule["column"]] if "column" in rule else None}
        for rule in dataset.manifest["rules"]
        if ledger.get(FAILS + rule["name"]) or rule["name"] == ledger["dropped_by"]
    ]
    return {"ledger": ledger, "text": texts[ledger["id"]], "broke": broke}


def _groups(dataset: Dataset, rule: str, found: _Groups) -> dict[str, Any]:
    """Returns the largest groups of duplicates: the kept copy and some of those that went."""
    heads = {document_id: -size for size, document_id in found.largest}
    copies: dict[str, list[dict[str, Any]]] = {document_id: [] for document_id in heads}
    for row in rows_with(dataset.files("ledger"), "matched_id", heads):
        members = copies[row["matched_id"]]
        if row["dropped_by"] == rule and len(members) < COPIES:
            members.append(row)
    kept = {row["id"]: row for row in rows_with(dataset.files("ledger"), "id", heads)}
    shown = [head for head in heads if copies[head]]
    texts = _texts(dataset, [*shown, *(copies[head][0]["id"] for head in shown)])
    groups, step = [], shingle_step(dataset.manifest, rule)
    for head in shown:
        group = {"size": heads[head], "kept": kept[head], "kept_text": texts[head]}
        group |= {"copies": copies[head], "copy_text": texts[copies[head][0]["id"]]}
        group |= _marks(step, group["copy_text"], group["kept_text"])
        groups.append(group)
    sizes = sorted(found.sizes.items())
    return {"rule": rule, "largest": groups, "sizes": sizes, "groups": sum(found.sizes.values())}


def _cuts(dataset: Dataset, most: dict[str, list[tuple[int, str]]]) -> list[dict[str, Any]]:
    """Returns what each step cut out of texts, and the kept documents that lost most."""
    ids = [document_id for found in most.values() for _, document_id in found]
    ledgers = {row["id"]: row for row in rows_with(dataset.files("ledger"), "id", ids)}
    texts = _texts(dataset, ids)
    cuts = []
    for cut in dataset.manifest["cuts"]:
        documents = []
        for _, document_id in most[cut["name"]]:
            ledger = ledgers[document_id]
            found = document_cuts(dataset, ledger, texts[document_id], CUT_SPANS)
            mine = next(other for other in found if other["name"] == cut["name"])
            documents.append({"ledger": ledger, "cut": mine})
        cuts.append(cut | {"examples": documents})
    return cuts


def _closures(dataset: Dataset, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what dropping by components of candidate pairs would also have dropped, by rule."""
    closures = []
    for name in columns:
        if not name.endswith(COMPONENT_ID):
            continue
        rule = name.removesuffix(COMPONENT_ID)
        found = peer_decisions(dataset.batches("ledger", decision_columns(rule)), rule)
        shown = [document_id for pair in found.examples for document_id in pair]
        ledgers = {row["id"]: row for row in rows_with(dataset.files("ledger"), "id", shown)}
        texts = _texts(dataset, shown)
        pairs = [
            [{"ledger": ledgers[i], "text": texts[i]} for i in (first, kept)]
            for kept, first in found.examples
        ]
        closures.append({"rule": rule, "found": found, "pairs": pairs})
    return closures


def _texts(dataset: Dataset, ids: Sequence[str]) -> dict[str, str | None]:
    """Returns the texts of documents, kept or dropped; None where the text was not kept."""
    texts: dict[str, str | None] = dict.fromkeys(ids)
    for kind in ("dropped", "data"):
        found = rows_with(dataset.files(kind), "id", ids, ["id", "text"])
        texts |= {row["id"]: row["text"] for row in found}
    return texts
