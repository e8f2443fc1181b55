"""What `why`, the report and the manifest say of spans that were cut."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from flows.console import print_manifest, print_why
from flows.report import write_report
from pipelines.compact import compact
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.pieces import PieceDedup
from pipelines.dedup.substring import SubstringDedup
from pipelines.explain import why
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source

NOTICE = "Subscribe to our letter and read <b>more</b> & more."
QUOTE = "it was the best of times, it was the worst of times, it was the age of wisdom"
TEXTS = [
    f"{NOTICE}\nThe first page says: {QUOTE}, and so it ends.",
    f"{NOTICE}\nAnother page quotes {QUOTE} in its middle.",
    f"{NOTICE}\n",
    "A page that holds nothing that another one holds.",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("cuts")
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    steps = (PieceDedup(), SubstringDedup(min_bytes=50), PieceDedup("paragraph", min_bytes=900))
    recipe = Recipe("cuts", (JsonlReader(),), steps)
    curate(recipe, [Source("pages", str(path))], folder / "out", Settings(workers=1))
    return Dataset(folder / "out")


def before(dataset: Dataset) -> dict[str, str]:
    rows = dataset.table("ledger", ["id", "origin"]).to_pylist()
    rows.sort(key=lambda row: row["origin"]["offset"])
    return {row["id"]: text for row, text in zip(rows, TEXTS, strict=True)}


def test_why_names_the_spans_and_the_documents_that_hold_them(dataset: Dataset) -> None:
    texts = before(dataset)
    lines = sorted(i for i, text in texts.items() if NOTICE in text)
    found = {i: {cut["name"]: cut for cut in why(dataset, i)["cuts"]} for i in texts}
    assert [i for i in sorted(texts) if "duplicate_line" in found[i]] == lines[1:]
    for i in lines[1:]:
        (span,) = found[i]["duplicate_line"]["shown"]
        assert span["matched_id"] == lines[0]
        assert (span["source"], span["path"]) == ("pages", "in.jsonl")
        assert texts[i].encode()[span["start"] : span["end"]].decode() == NOTICE + "\n"
        assert "before" not in span  # a later step may have changed the text
    first, second = sorted(i for i, text in texts.items() if QUOTE in text)
    (span,) = found[second]["duplicate_substring"]["shown"]
    assert span["matched_id"] == first
    kept = why(dataset, second)["text"]
    assert QUOTE not in kept
    assert why(dataset, first)["text"].count(QUOTE) == 1


def test_why_prints_what_was_cut(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=160, file=None)
    monkeypatch.setattr("flows.console.console", console)
    second = max(i for i, text in before(dataset).items() if QUOTE in text)
    result = why(dataset, second)
    print_why(result)
    shown = console.export_text()
    assert "SubstringDedup cut" in shown
    assert result["cuts"][-1]["shown"][0]["matched_id"] in shown


def test_manifest_counts_what_each_step_cut_and_warns_of_a_silent_one(dataset: Dataset) -> None:
    line, substring, paragraph = dataset.manifest["cuts"]
    assert (line["name"], line["documents"], line["spans"]) == ("duplicate_line", 2, 2)
    assert line["bytes"] == 2 * len(NOTICE + "\n")
    assert (substring["documents"], substring["spans"]) == (1, 1)
    assert substring["bytes"] >= len(QUOTE)
    assert paragraph["bytes"] == 0
    assert [cut["last"] for cut in dataset.manifest["cuts"]] == [False, False, True]
    assert "step PieceDedup cut nothing (duplicate_paragraph)" in dataset.manifest["warnings"]


def test_a_document_without_text_is_dropped_by_no_text(dataset: Dataset) -> None:
    (bare,) = (i for i, text in before(dataset).items() if text == TEXTS[2])
    outcome = why(dataset, bare)["outcome"]
    first = min(i for i, text in before(dataset).items() if NOTICE in text)
    assert outcome == ("kept" if bare == first else "no_text")


def test_compaction_keeps_the_counts(dataset: Dataset, tmp_path: Path) -> None:
    compacted = compact([dataset.path], tmp_path / "out")
    assert compacted["cuts"] == dataset.manifest["cuts"]


def test_report_and_funnel_show_bytes_and_examples(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write_report(dataset.path, tmp_path / "report.html").read_text("utf-8")
    section = page.partition('<section id="cuts">')[2].partition("</section>")[0]
    for cut in dataset.manifest["cuts"]:
        assert cut["name"] in section
    second = max(i for i, text in before(dataset).items() if QUOTE in text)
    assert f" {second}</code>" in section
    assert "never cut" in section
    assert 'href="#cuts"' in page
    console = Console(record=True, width=160, file=None)
    monkeypatch.setattr("flows.console.console", console)
    print_manifest(dataset.manifest, str(dataset.path))
    assert "cut by SubstringDedup" in console.export_text()
