import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate import curate
from pipelines.dataset import Dataset
from pipelines.dedup.exact import ExactDedup
from pipelines.dedup.keep import Highest, Longest, Lowest, Oldest, SourceRank
from pipelines.document import document_ids, id_words
from pipelines.global_step import Keys
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source

TEXTS = ["a b", "a  b", " a b\n", "a\tb", "A b", "ab", "", None, "caf\u00e9", "cafe\u0301"]


def batch_of(texts, quality=None, dates=None, sources=None) -> pa.RecordBatch:
    n = len(texts)
    return pa.RecordBatch.from_pydict(
        {
            "id": document_ids("s", ["p"] * n, [str(i) for i in range(n)]),
            "text": pa.array(texts, pa.string()),
            "quality": pa.array(quality or [0.0] * n, pa.float64()),
            "date": pa.array(dates or [None] * n, pa.string()),
            "source": pa.array(sources or ["s"] * n, pa.string()),
        }
    )


def dropped_by(step: ExactDedup, batch: pa.RecordBatch) -> dict[int, str]:
    group, rank = step.keys(batch)
    n = batch.num_rows
    keys = Keys(group, rank, id_words(batch.column("id")), np.arange(n))
    verdicts = step.decide(keys, np.zeros(n, np.int32)).to_pylist()
    return {row["row"]: row["matched_id"] for row in verdicts if row["dropped"]}


@given(st.lists(st.sampled_from(TEXTS), max_size=30))
@settings(max_examples=100)
def test_exact_dedup_equals_a_dictionary_of_folded_texts(texts):
    batch = batch_of(texts)
    ids = batch.column("id").to_pylist()
    groups: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        if text is not None:
            groups.setdefault(" ".join(text.split()), []).append(row)
    want = {}
    for rows in groups.values():
        first = min(rows, key=lambda row: ids[row])
        want |= {row: ids[first] for row in rows if row != first}
    assert dropped_by(ExactDedup(), batch) == want


def test_exact_dedup_without_folding_compares_bytes():
    batch = batch_of(["a b", "a  b", "a b"])
    assert len(dropped_by(ExactDedup(fold_white_space=False), batch)) == 1


@pytest.mark.parametrize(
    ("order", "kept"),
    [
        (Highest("quality"), 2),
        (Lowest("quality"), 1),
        (Oldest(), 3),
        (SourceRank(("wiki",)), 0),
        (Longest(), 4),
    ],
)
def test_keep_policy_decides_which_copy_stays(order, kept):
    batch = batch_of(
        ["x y", "x y", "x y", "x y", "x    y"],
        quality=[0.0, -1.5, 7.0, None, 1.0],
        dates=["2021-02-03", None, "2020", "2019-12-31T10:00:00Z", "2021"],
        sources=["wiki", "web", "web", "web", "web"],
    )
    gone = dropped_by(ExactDedup(keep=(order,)), batch)
    assert set(range(5)) - set(gone) == {kept}
    assert set(gone.values()) == {batch.column("id")[kept].as_py()}


@given(st.lists(st.floats(allow_nan=False) | st.none(), min_size=2, max_size=20))
@settings(max_examples=100)
def test_ranks_order_as_the_values_do(values):
    column = pa.RecordBatch.from_pydict({"q": pa.array(values, pa.float64())})
    low, high = Lowest("q").rank(column), Highest("q").rank(column)
    for i, one in enumerate(values):
        for j, other in enumerate(values):
            if one is None:
                assert low[i] >= low[j]
                assert high[i] >= high[j]
            elif other is not None:
                assert (low[i] < low[j]) == (one < other)
                assert (high[i] < high[j]) == (one > other)


def test_recipe_drops_by_url_and_then_by_text(tmp_path):
    rows = [("http://a/1", "one"), ("http://a/1", "two"), (None, "one"), (None, "three")]
    lines = [json.dumps({"url": url, "text": text}) + "\n" for url, text in rows]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    steps = (ExactDedup("url", (Longest(),)), ExactDedup())
    recipe = Recipe("urls", (JsonlReader(columns=("url",)),), steps)
    manifest = curate(recipe, [Source("s", str(tmp_path / "in.jsonl"))], tmp_path / "out")
    dropped = {rule["name"]: rule["dropped"] for rule in manifest["rules"]}
    assert dropped["duplicate_url"] == 1
    assert sum(dropped.values()) == 4 - manifest["kept"]
    ledger = Dataset(tmp_path / "out").table("ledger")
    gone = ledger.filter(pc.equal(ledger["dropped_by"], "duplicate_url")).to_pylist()
    (row,) = gone
    (kept,) = [r for r in ledger.to_pylist() if r["url"] == "http://a/1" and r["id"] != row["id"]]
    assert row["matched_id"] == kept["id"]
