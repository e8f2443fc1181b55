"""Decontamination: benchmark items are found in documents, which are dropped or cut.

An item is there if enough of its words stand, in n-grams of five words as in the item, in one
stretch of the document. Words swapped here and there then cost little, since the n-grams between
them still cover their words; a quote of a part of the item stays below the share. Numbers are one
symbol, so an item with other numbers is the same item. benchmarks/decontamination.py measures what
is found, by form of edit, beside datatrove's 12-grams.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.benchmark_sets import Benchmark
from pipelines.decontaminate_index import Index, NgramSearch, build_index
from pipelines.decontaminate_kernels import find_grams
from pipelines.decontaminate_windows import best_items, hit_windows
from pipelines.progress import say
from pipelines.step import Editor, Filter, Rule
from pipelines.text_buffers import replace_values, string_buffers

SPANS = pa.list_(
    pa.struct(
        [
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("benchmark", pa.string()),
            ("item", pa.int64()),
            ("share", pa.float64()),
        ]
    )
)
SEARCH = NgramSearch()
NOTHING, NO_ITEM = "none", -1
"""What a document is contaminated by where it is not: nulls would say that nobody looked."""
NAMED_ITEMS = 5
"""So many undetectable items a warning names; the manifest has all."""


@dataclass(frozen=True)
class Decontaminate(Filter):
    """Finds the benchmark item of which a document holds most, and bounds the share.

    Adds contamination_share (float64: covered words over those that the item's n-grams can cover,
    or over `search.min_words` for a shorter item), and where it is min_share or more
    contaminated_by (the benchmark) and contaminated_item (int64, the item's row there); elsewhere
    they are "none" and -1. A text without a known n-gram has share 0; a null one nulls.

    Items that keep too few n-grams are never found: their rows are in the manifest, under the
    step's facts.

    Raises:
        ValueError: min_share or the benchmarks make no sense; at the first call, a benchmark is
            missing or broken; when a run begins, none of its items can be found.

    Source: n-gram overlap, Brown et al. 2020, arXiv:2005.14165, appendix C (13-grams); the covered
    share, Touvron et al. 2023, Llama 2, arXiv:2307.09288, appendix A.6.
    """

    benchmarks: tuple[Benchmark, ...]
    min_share: float = 0.5
    clean_texts: tuple[Benchmark, ...] = ()
    """Texts that everybody quotes: their n-grams speak for no item."""
    search: NgramSearch = SEARCH

    adds = pa.schema(
        [
            ("contamination_share", pa.float64()),
            ("contaminated_by", pa.string()),
            ("contaminated_item", pa.int64()),
        ]
    )
    rules = (Rule("contaminated", "contamination_share", ">=", "min_share"),)
    paths = ("benchmarks", "clean_texts")

    def __post_init__(self) -> None:
        _check(self.name, self.benchmarks, self.min_share)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the columns of `adds`."""
        index = _index(self)
        found, stops, valid = _search(batch, index)
        best = np.zeros(len(batch), np.int32)
        covered = np.zeros(len(batch), np.int32)
        best_items(found, stops, index.items, best, covered)
        best = np.maximum(best, 0)  # where nothing was found, nothing is covered
        shares = covered / index.items.whole[best]
        clean = pa.array(shares < self.min_share)
        names = pc.if_else(clean, NOTHING, index.names.take(best))
        rows = pc.if_else(clean, NO_ITEM, index.rows.take(best))
        for field, column in zip(self.adds, (shares, names, rows), strict=True):
            batch = batch.append_column(field, pc.if_else(pa.array(valid), column, None))
        return batch

    def facts(self) -> dict[str, Any]:
        """Returns by benchmark how many items there are and the rows that cannot be found."""
        return _facts(self.name, _index(self, fresh=True), self.min_share)


@dataclass(frozen=True)
class CutContaminated(Editor):
    """Cuts benchmark items out of documents, each from its first matched n-gram to its last.

    An item is there where `Decontaminate` says so, as often as it is there; words before the first
    match and after the last stay. Cuts lie at the borders of words, and spans that overlap are one,
    under the item with the largest share.

    Adds contaminated_spans (bytes of the text as it was before, with benchmark, item and share),
    n_contaminated_spans (int32) and contaminated_bytes (int64). A null text stays null, with nulls
    beside it.

    Raises:
        ValueError: as `Decontaminate`.
    """

    benchmarks: tuple[Benchmark, ...]
    min_share: float = 0.5
    clean_texts: tuple[Benchmark, ...] = ()
    """Texts that everybody quotes: their n-grams speak for no item."""
    search: NgramSearch = SEARCH

    adds = pa.schema(
        [
            ("text", pa.string()),
            ("contaminated_spans", SPANS),
            ("n_contaminated_spans", pa.int32()),
            ("contaminated_bytes", pa.int64()),
        ]
    )
    paths = ("benchmarks", "clean_texts")

    def __post_init__(self) -> None:
        _check(self.name, self.benchmarks, self.min_share)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the text cut; a batch without a hit keeps its buffers."""
        index = _index(self)
        found, stops, valid = _search(batch, index)
        hit_stops = np.zeros(len(batch), np.int64)
        needs = index.needs(self.min_share)
        hits = hit_windows(found, stops, index.items, needs, hit_stops).tolist()
        text = batch.column("text")
        spans: list[list[dict[str, Any]] | None] = [[] if there else None for there in valid]
        changed = {}
        for row in np.flatnonzero(np.diff(hit_stops, prepend=0)).tolist():
            first = int(hit_stops[row - 1]) if row else 0
            merged = _merged(hits[first : hit_stops[row]], index)
            data = text[row].as_py().encode()
            edges = [0, *(edge for span in merged for edge in (span["start"], span["end"])), None]
            pieces = zip(edges[::2], edges[1::2], strict=True)
            changed[row] = b"".join(data[start:end] for start, end in pieces).decode()
            spans[row] = merged
        if changed:
            text = replace_values(text, changed)
        counts = [None if row is None else len(row) for row in spans]
        sizes = [None if row is None else sum(s["end"] - s["start"] for s in row) for row in spans]
        batch = batch.set_column(batch.schema.get_field_index("text"), "text", text)
        batch = batch.append_column("contaminated_spans", pa.array(spans, SPANS))
        batch = batch.append_column("n_contaminated_spans", pa.array(counts, pa.int32()))
        return batch.append_column("contaminated_bytes", pa.array(sizes, pa.int64()))

    def facts(self) -> dict[str, Any]:
        """Returns by benchmark how many items there are and the rows that cannot be found."""
        return _facts(self.name, _index(self, fresh=True), self.min_share)


def _check(step: str, benchmarks: tuple[Benchmark, ...], min_share: float) -> None:
    names = [benchmark.name for benchmark in benchmarks]
    if not names or len({*names, NOTHING}) <= len(names):
        raise ValueError(
            f"{step}: benchmarks are called {names}; wanted one or more, each with a name of its "
            f'own other than {NOTHING!r}, for example (Benchmark("gsm8k", "test.jsonl.gz"),)'
        )
    if not 0 < min_share <= 1:
        raise ValueError(f"{step}: min_share is {min_share}, wanted more than 0 and at most 1")


def _search(batch: pa.RecordBatch, index: Index) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the n-grams found, where each document's end, and which texts are there."""
    offsets, data, valid = string_buffers(batch.column("text"))
    stops = np.zeros(len(batch), np.int64)
    return find_grams(offsets, data, valid, index.table, stops), stops, valid


def _merged(hits: list[list[int]], index: Index) -> list[dict[str, Any]]:
    """Returns a document's hits by place, those that overlap as one."""
    merged: list[dict[str, Any]] = []
    for start, end, item, covered in sorted(hits):
        span = {
            "start": start,
            "end": end,
            "benchmark": index.names[item].as_py(),
            "item": index.rows[item].as_py(),
            "share": covered / int(index.items.whole[item]),
        }
        if merged and start < merged[-1]["end"]:
            last = merged.pop()
            best = span if span["share"] > last["share"] else last
            span = best | {"start": last["start"], "end": max(last["end"], end)}
        merged.append(span)
    return merged


def _index(step: Decontaminate | CutContaminated, fresh: bool = False) -> Index:
    """Returns the index of a step, read anew where a run begins: the files may have changed."""
    if fresh:
        build_index.cache_clear()
    return build_index(step.benchmarks, step.clean_texts, step.search)


def _facts(step: str, index: Index, min_share: float) -> dict[str, Any]:
    counts = {pair["values"]: pair["counts"] for pair in index.names.value_counts().to_pylist()}
    undetectable = index.undetectable(min_share)
    for name, rows in undetectable.items():
        if rows:
            first = ", ".join(map(str, rows[:NAMED_ITEMS]))
            more = ", ..." if len(rows) > NAMED_ITEMS else ""
            say(
                f"warning: {step}: {len(rows)} of {counts[name]} items of {name} keep too few "
                f"n-grams of their own to be found (rows {first}{more}); the manifest has all"
            )
    return {"items": counts, "undetectable": undetectable}
