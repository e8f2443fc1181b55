import json
import math
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from filters.gopher_quality import GopherQuality
from filters.gopher_repetition import GopherRepetition
from flows.charts import Categories, Histogram, Question, precise, share
from flows.console import print_why
from flows.curves import line_plot
from flows.report import write_report
from flows.runs.hybrid_20m import run as training_run
from mixtures.mixture import Mixture, Part, mix
from mixtures.token_dataset import tokenize
from mixtures.vocabulary_training import train_vocabulary
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset, write_json
from pipelines.dedup.exact import ExactDedup
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.dedup.keep import Longest
from pipelines.explain import compared, examples, why
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source
from pipelines.step import Cut
from training_hook.evaluation.bits_per_byte import PartScore
from training_hook.metrics import MetricsWriter

HOSTILE = (
    '</pre></details><script>alert("x")</script><!-- & &amp; <img src=http://x/y.png> \x00\x1b'
)
SYLLABLES = ("ba", "do", "fi", "ke", "li", "mo", "ra", "tu")
WORDS = [*("the", "of", "and", "to", "be") * 60, *map("".join, product(SYLLABLES, repeat=3))]
VOID = {"meta", "link", "br", "hr", "img", "input"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


class Page(HTMLParser):
    """A parsed page; a tag that is not closed where it should be is a failure."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pre: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "pre":
            self.pre.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.pre[-1] += data
        self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


def prose(rng: np.random.Generator, words: int) -> str:
    chosen = rng.choice(WORDS, words)
    lines = [" ".join(chosen[at : at + 9]) + "." for at in range(0, words, 9)]
    return "\n".join(lines)


def write_sources(folder: Path) -> list[Source]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    copied = prose(rng, 150)
    for name in ("one", "two"):
        texts = [prose(rng, int(rng.integers(30, 300))) for _ in range(120)]
        texts += [copied] * 9 + ["the same line again and again\n" * 40, HOSTILE, ""]
        lines = [json.dumps({"text": text}).encode() for text in texts] + [b'{"text": ', b"[]"]
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return [Source(name, str(folder / f"{name}.jsonl")) for name in ("one", "two")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of the real engine with errors, a cut, duplicates, silent rules and odd texts."""
    folder = tmp_path_factory.mktemp("report")
    quality = GopherQuality(min_words=20, max_words=250)
    steps = (quality, Cut(), GopherRepetition(), ExactDedup(keep=(Longest(),)))
    recipe = Recipe("small", (JsonlReader(),), steps)
    curate(recipe, write_sources(folder / "corpus"), folder / "out", Settings(workers=1))
    return Dataset(folder / "out")


@pytest.fixture(scope="module")
def page(dataset: Dataset) -> str:
    return write_report(dataset.path).read_text("utf-8")


def write_training(folder: Path, steps: int) -> None:
    run = training_run()
    metrics = MetricsWriter(folder, 0)
    write_json(folder / "run.json", {"run": run.parameters()})
    for step in range(1, steps + 1):
        metrics.add(
            {
                "step": step,
                "loss": 3 + 6 * math.exp(-step / 50),
                "learning_rate": run.schedule.learning_rate(step),
                "gradient_norm": 1 / step,
                "tokens": step * run.tokens_per_step,
                "target_tokens": run.tokens_per_step,
                "first_sample": 0,
                "samples": run.batch_size,
                "seconds": 1.0,
                "tokens_per_second": float(run.tokens_per_step),
            }
        )
    metrics.close_part()
    for step, bits in ((0, 4.0), (steps, 1.5)):
        nats = bits * math.log(2) * 1000
        scores = [PartScore("code", 5, 300, 1000, nats), PartScore("prose", 5, 300, 3000, nats)]
        metrics.add_evaluation(step, [score.row() for score in scores])


def tables(page: str, section: str) -> list[list[list[str]]]:
    """Returns the cells of a section's tables, as text, without their head rows."""
    body = page.split(f'<section id="{section}">')[1].split("</section>")[0]
    found = []
    for table in re.findall(r"<tbody>(.*?)</tbody>", body, re.DOTALL):
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in table.split("<tr")]
        found.append([[text_of(cell) for cell in row] for row in rows[1:]])
    return found


def text_of(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", markup).split())


def row_of(page: str, section: str, rule: str) -> list[str]:
    """Returns the cells of a rule's row in a section's first table, as text."""
    return next(row for row in tables(page, section)[0] if row[0].split()[0] == rule)


def count(cell: str) -> int:
    return int(cell.replace(",", ""))


def figures(page: str) -> dict[str, str]:
    """Returns the figures of the signals by the name of the signal."""
    found = re.findall(r'<figure id="signal-\d+">(.*?)</figure>', page, re.DOTALL)
    return {re.search(r"<b[^>]*>(.*?)</b>", figure)[1]: figure for figure in found}  # pyright: ignore[reportOptionalSubscript]


def test_report_rules_table_equals_manifest(dataset: Dataset, page: str) -> None:
    rules = dataset.manifest["rules"]
    assert any(rule["name"].startswith("error_") for rule in rules)
    for rule in rules:
        name, question, broken, dropped, *_ = row_of(page, "rules", rule["name"])
        assert (broken, dropped) == (f"{rule['broken']:,}", f"{rule['dropped']:,}")
        assert name.endswith(rule["step"])
        if "comparison" in rule:
            assert question.endswith(f"{precise(rule['threshold'])} {rule['parameter']}")


def test_report_funnel_ends_with_what_was_kept(dataset: Dataset, page: str) -> None:
    manifest = dataset.manifest
    left = manifest["documents_in"]
    for rule in manifest["rules"]:
        left -= rule["dropped"]
        assert row_of(page, "funnel", rule["name"])[5] == f"{left:,}"
    assert left == manifest["kept"]


def test_report_funnels_of_sources_add_up_to_the_whole(dataset: Dataset, page: str) -> None:
    whole, sources, *parts = tables(page, "funnel")
    assert len(sources) == len(parts) == 2
    for rows in zip(whole[1:-1], *(part[1:-1] for part in parts), strict=True):
        assert len({row[0] for row in rows}) == 1
        total, one, two = (count(row[2]) for row in rows)
        assert total == one + two
    assert sum(count(row[2]) for row in whole[1:-1]) == -dataset.manifest["dropped"]


def test_report_alone_counts_documents_that_broke_one_rule(dataset: Dataset, page: str) -> None:
    ledger = dataset.table("ledger").to_pylist()
    fails = [name for name in ledger[0] if name.startswith("fails_")]
    for rule in dataset.manifest["rules"]:
        if f"fails_{rule['name']}" in fails:
            alone = [[n for n in fails if row[n]] for row in ledger].count(
                [f"fails_{rule['name']}"]
            )
            assert row_of(page, "rules", rule["name"])[-1] == f"{alone:,}"


def test_report_silent_rules_are_loud(dataset: Dataset, page: str) -> None:
    silent = [rule["name"] for rule in dataset.manifest["rules"] if not rule["broken"]]
    silent = [name for name in silent if name != "no_text"]
    assert silent
    for name in silent:
        assert f"rule {name} dropped nothing" in page
        assert "never fired" in row_of(page, "rules", name)[0]


def test_report_bars_hold_every_document(dataset: Dataset, page: str) -> None:
    ledger = dataset.table("ledger")
    shown = figures(page)
    assert set(shown) == {"text_bytes", *dataset.manifest["signals"]}
    for name, figure in shown.items():
        bars = re.findall(r"<title>.*?: ([\d,]+) kept, ([\d,]+) dropped</title>", figure)
        kept, dropped = (sum(map(count, column)) for column in zip(*bars, strict=True))
        assert kept == dataset.manifest["kept"]
        assert kept + dropped == len(ledger) - ledger.column(name).null_count


def test_report_thresholds_are_drawn_on_their_signal(dataset: Dataset, page: str) -> None:
    shown = figures(page)
    asked = [rule for rule in dataset.manifest["rules"] if "comparison" in rule]
    assert len(asked) > 20
    for rule in asked:
        figure = shown[rule["column"]]
        labels = re.findall(r'<i class="limit[^"]*" style="left:([\d.]+)%">(.*?)</i>', figure)
        assert precise(rule["threshold"]) in [label for _, label in labels]
        assert all(0 <= float(place) <= 100 for place, _ in labels)
        assert figure.count('<rect class="tint"') == len(labels)


def test_report_examples_are_those_of_show(dataset: Dataset, page: str) -> None:
    parsed = Page(page)
    commands = [text for text in parsed.text if text.startswith("gristmill why . ")]
    for rule in dataset.manifest["rules"]:
        for document in examples(dataset, rule["name"], 5):
            assert f"gristmill why . {document['id']}" in commands


def test_report_text_cannot_break_out(page: str) -> None:
    parsed = Page(page)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "img", "link", "iframe", "object"}
    shown = HOSTILE.replace("\x00", chr(0x2400)).replace("\x1b", chr(0x241B))
    assert any(shown in text for text in parsed.pre)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)


def test_report_white_space_of_a_text_is_kept(tmp_path: Path) -> None:
    text = "\n\n  two blanks\tand a tab\n\n"
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": text}) + "\n" + json.dumps({"text": "the tree of the river " * 30})
    )
    recipe = Recipe("spaces", (JsonlReader(),), (GopherQuality(min_words=20),))
    curate(recipe, [Source("a", str(tmp_path / "a.jsonl"))], tmp_path / "out", Settings(workers=1))
    parsed = Page(write_report(tmp_path / "out").read_text("utf-8"))
    assert parsed.pre == ["\n" + text]  # HTML ignores the line break after <pre>


def test_report_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert parsed.values("src") == []
    assert all(target.startswith("#") for target in parsed.values("href"))
    assert not re.search(r"url\(|@import|@font-face", page)


def test_report_links_have_their_targets(page: str) -> None:
    parsed = Page(page)
    targets = parsed.values("id")
    assert len(set(targets)) == len(targets)
    assert {target[1:] for target in parsed.values("href")} <= set(targets)


def test_report_same_dataset_gives_same_bytes(dataset: Dataset, page: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(dataset.path, copy)
    assert write_report(copy).read_text("utf-8") == page
    assert list(copy.glob(".tmp-*")) == []


def test_report_elsewhere_names_the_dataset_from_there(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.path, tmp_path / "my data")
    out = write_report(tmp_path / "my data", tmp_path / "pages" / "page.html")
    assert out == tmp_path / "pages" / "page.html"
    assert "gristmill why &#39;../my data&#39; " in out.read_text("utf-8")


def test_report_duplicates_show_the_largest_group(dataset: Dataset, page: str) -> None:
    section = page.split('<section id="duplicates-0">')[1].split("</section>")[0]
    ledger = dataset.table("ledger").to_pylist()
    removed = [row for row in ledger if row["dropped_by"] == "exact_duplicate"]
    groups = {row["matched_id"] for row in removed}
    assert f"{len(removed)} copies of {len(groups)} documents were removed" in section
    assert "<b>18 copies</b>" in section.split("</summary>")[0]
    kept, other = Page(section.split("<details")[1].split(">", 1)[1].split("</details>")[0]).pre
    assert kept == other
    assert len(kept) > 200


def test_report_errors_and_records_are_listed(dataset: Dataset, page: str) -> None:
    section = page.split('<section id="input">')[1].split("</section>")[0]
    for kind, number in dataset.manifest["records"].items():
        assert f">{kind}<" in section
        assert f"<span>{number:,}</span>" in section
    errors = [rule for rule in dataset.manifest["rules"] if rule["name"].startswith("error_")]
    assert errors
    assert all(rule["name"] in section for rule in errors)


def test_report_without_dropped_texts_says_so(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "corpus")
    recipe = Recipe("small", (JsonlReader(),), (GopherQuality(min_words=20),))
    curate(recipe, sources, tmp_path / "out", Settings(workers=1, keep_dropped="origin"))
    page = write_report(tmp_path / "out").read_text("utf-8")
    assert "Its text was not kept (--keep-dropped origin)." in page
    assert Page(page).pre == []


def test_report_of_a_run_shows_every_stage(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.path, tmp_path / "dataset")
    write_training(tmp_path / "training", 60)
    stages = [
        {"name": "curate", "seconds": 3.21, "result": {"kept": 12, "out": "<b>"}},
        {"name": "pretrain", "seconds": 130.0, "result": {"loss": 3.5}},
    ]
    folders = {"dataset": "dataset", "tokens": {"code": "tokens/code"}, "training": "training"}
    write_json(
        tmp_path / "wheel.json", {"recipe": "my wheel", "stages": stages, "folders": folders}
    )
    page = write_report(tmp_path).read_text("utf-8")
    Page(page)
    assert "<h1>my wheel</h1>" in page
    assert "2 min 13 s" in page
    assert "tokens code" in page.split('<section id="stages">')[1].split("</section>")[0]
    assert f"gristmill why dataset {examples(dataset, 'too_few_words', 1)[0]['id']}" in page
    assert page.count('<polyline class="curve c0"') == 4
    held_out = page.split('<section id="held-out">')[1]
    cells = re.findall(r'<td class="n">([^<]*)</td>', held_out.split("</tr>")[3])
    # 4 and 1.5 bits for 1,000 bytes each of code and 3,000 of prose: (b + b) * 1000 / 4000 in all
    assert cells == ["2.000", "0.750", "-62.5%"]


def test_report_of_a_mixture_shows_what_is_drawn(dataset: Dataset, tmp_path: Path) -> None:
    train_vocabulary([dataset.path], tmp_path / "tokenizer", kind="bpe", size=512)
    folders = {name: tmp_path / "tokens" / name for name in ("prose", "code")}
    for folder in folders.values():
        tokenize(dataset.path, tmp_path / "tokenizer", folder)
    parts = (Part("prose", 3.0), Part("code", 1.0, max_repetition=2.0))
    mixture = Mixture("three to one", parts, sequence_length=128, holdout_share=0.1)
    manifest = mix(mixture, folders, tmp_path / "mixture", seed=1)
    page = write_report(tmp_path).read_text("utf-8")
    Page(page)
    drawn, sources = tables(page, "mixture")
    for row, wanted, part in zip(drawn, ("75.0%", "25.0%"), manifest["table"], strict=True):
        assert row[0] == part["part"]
        assert row[2] == wanted
        assert row[4] == f"{part['samples']:,}"
        assert row[6] == f"{part['epochs']:.2f}"
    for row, part, cap in zip(sources, manifest["parts"], ("4", "2"), strict=True):
        assert row[:3] == [part["name"], str(part["documents"]), str(part["held_out"])]
        assert row[6:] == [f"{part['repetition']:.2f}", cap]


def test_report_of_an_unfinished_training_run_has_its_curve(tmp_path: Path) -> None:
    write_training(tmp_path / "training", 7)
    page = write_report(tmp_path).read_text("utf-8")
    Page(page)
    assert page.count('<polyline class="curve c0"') == 4
    assert "not finished" in page
    assert 'id="funnel"' not in page


@pytest.mark.parametrize("content", ["", "manifest.json", "notes.txt"])
def test_report_of_another_folder_is_refused(tmp_path: Path, content: str) -> None:
    if content:
        (tmp_path / content).write_text("{}")
    with pytest.raises(ValueError, match="holds no finished dataset, training run or stage"):
        write_report(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1400])
def test_report_opens_in_a_browser(dataset: Dataset, page: str, tmp_path: Path, width: int) -> None:
    assert page
    shot, profile = tmp_path / "page.png", tmp_path / "profile"
    address = (dataset.path / "report.html").resolve().as_uri()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    options += [f"--screenshot={shot}", f"--window-size={width},1600", "--enable-logging=stderr"]
    done = subprocess.run(
        [str(CHROMIUM), *options, address], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr
    assert len(set(png_bytes(shot.read_bytes()))) > 50, "the page is blank"


def png_bytes(data: bytes) -> bytes:
    """Returns the filtered pixels of a PNG."""
    at, packed = 8, b""
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    return zlib.decompress(packed)


numbers = st.lists(
    st.one_of(st.none(), st.floats(-1e12, 1e12), st.floats(allow_infinity=True)), max_size=60
)
thresholds = st.lists(
    st.tuples(st.sampled_from(["<", "<=", ">", ">="]), st.floats(-1e9, 1e9)), max_size=3
)


@settings(max_examples=200)
@example([179770.0, 6.551978098671073e-303, 5e-324], [], False, 0)
@example([], [("<", 5e-324)], False, 0)
@given(numbers, thresholds, st.booleans(), st.integers(0, 60))
def test_histogram_any_values_keeps_counts_and_stays_on_the_plot(
    values: list[float | None], limits: list[tuple[str, Any]], integer: bool, split: int
) -> None:
    questions = [Question(f"rule{i}", *limit, 0) for i, limit in enumerate(limits)]
    column = pa.array(values, pa.float64())
    if integer:
        largest = 2.0**62
        whole = [
            None if v is None or v != v else int(np.clip(v, -largest, largest)) for v in values
        ]
        column = pa.array(whole, pa.int64())
    chart = Histogram(pa.chunked_array([column[:20]]), questions, integer)
    dropped = np.arange(len(column)) % 3 == 0
    for part in (slice(0, split), slice(split, None)):
        chart.add(column[part], dropped[part])
    valid = [v is not None and math.isfinite(v) for v in column.to_pylist()]
    assert chart.missing == valid.count(False)
    assert chart.counts.sum(axis=1).tolist() == [
        sum(v and not d for v, d in zip(valid, dropped, strict=True)),
        sum(v and d for v, d in zip(valid, dropped, strict=True)),
    ]
    drawing = chart.drawing()
    assert sum(bar["kept"] + bar["dropped"] for bar in drawing["bars"]) == sum(valid)
    for bar in drawing["bars"]:
        assert 0 <= bar["x"] <= bar["x"] + bar["width"] <= 100.01
        assert 0 <= bar["kept_height"] <= bar["height"] <= 100
    assert len(drawing["regions"]) == len(limits)
    places = [tick.place for tick in drawing["ticks"]]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)


@pytest.mark.parametrize(
    ("comparison", "border"), [("<", 9.5), ("<=", 10.5), (">", 10.5), (">=", 9.5)]
)
def test_histogram_integer_border_lies_between_values(comparison: str, border: float) -> None:
    chart = Histogram(
        pa.chunked_array([pa.array(range(21))]), [Question("r", comparison, 10, 0)], integer=True
    )
    assert [tick.label for tick in chart.drawing()["ticks"]] == ["0", "5", "10", "15", "20"]
    region = chart.drawing()["regions"][0]
    assert region["border"] == chart.axis.place(border)


def test_histogram_small_counts_have_whole_ticks() -> None:
    column = pa.array([0, 0, 1, 1])
    chart = Histogram(pa.chunked_array([column]), [], integer=True)
    assert [tick.label for tick in chart.drawing()["ticks"]] == ["0", "1"]


def test_histogram_tall_bar_is_cut_and_others_seen() -> None:
    column = pa.array([0.0] * 10_000 + [0.5] * 10 + [1.0])
    chart = Histogram(pa.chunked_array([column]), [], integer=False)
    chart.add(column, np.zeros(len(column), bool))
    cut, middle, last = chart.drawing()["bars"]
    assert (cut["cut"], middle["cut"]) == (True, False)
    assert middle["height"] > 50
    assert last["height"] >= 1.5


def test_categories_count_and_mark_what_a_rule_drops() -> None:
    chart = Categories([Question("wrong_language", "not in", ["en"], 3)])
    chart.add(pa.array(["en", "de", None, "de", "en"]), np.array([False, True, True, True, False]))
    assert chart.missing == 1
    assert chart.drawing()["rows"] == [
        {"label": "de", "broken": True, "kept": 0, "dropped": 2},
        {"label": "en", "broken": False, "kept": 2, "dropped": 0},
    ]


def test_categories_many_values_are_summed_up() -> None:
    chart = Categories([])
    for start in range(0, 5_000, 500):
        names = [f"value {number}" for number in range(start, start + 500)]
        chart.add(pa.array(names), np.zeros(500, bool))
    rows = chart.drawing()["rows"]
    assert len(rows) <= 16
    assert sum(row["kept"] for row in rows) == 5_000
    assert len(chart.counts) <= 1_001


def test_line_plot_long_curve_keeps_its_extremes() -> None:
    y = np.sin(np.arange(10_000) / 700)
    y[5_000] = 9.0
    plot = line_plot(np.arange(10_000.0), y, "loss")
    assert plot is not None
    drawn = plot["lines"][0]
    line = [tuple(map(float, pair.split(","))) for pair in drawn["line"].split()]
    band = [tuple(map(float, pair.split(","))) for pair in drawn["band"].split()]
    assert len(line) <= 400
    assert min(height for _, height in band) < 8 < min(height for _, height in line)
    assert all(0 <= x <= 100 and 0 <= height <= 100 for x, height in (*line, *band))


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 9, "0%"),
        (9, 9, "100%"),
        (1, 10_000, "<0.1%"),
        (9_999, 10_000, ">99.9%"),
        (1, 3, "33.3%"),
    ],
)
def test_share_is_whole_only_where_it_is_exact(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (50, "50"),
        (100_000, "100,000"),
        (0.3, "0.3"),
        (1234.56, "1,234.6"),
        (["en", "de"], "en, de"),
    ],
)
def test_precise_writes_numbers_for_people(value: Any, text: str) -> None:
    assert precise(value) == text


def test_report_of_a_run_shows_classifier_and_answers(tmp_path: Path) -> None:
    half = {"precision": 0.9, "recall": 0.8, "f1": 0.85}
    test = {"documents": 70, "positive": 50, "roc_auc": 0.93, "average_precision": 0.97}
    label = {"documents": 7, "called_good": 0.25, "mean_score": 0.3}
    metrics = {"test": test | {"at_half": half}, "reliability": {"expected_error": 0.05}}
    (tmp_path / "classifier").mkdir()
    write_json(
        tmp_path / "classifier" / "metrics.json", metrics | {"test_by_label": {"stub": label}}
    )
    share = {"right": 1, "asked": 4, "accuracy": 0.25, "interval": [0.05, 0.7]}
    example = {"question": "2 + 2 = <b>", "expected": "4", "text": " 5", "right": False}
    (tmp_path / "answers").mkdir()
    for when in ("before", "after"):
        result = share | {"families": {"chain_sum": share}, "examples": [example]}
        write_json(tmp_path / "answers" / f"{when}.json", result)
    stages = [{"name": "evaluate", "what": "ask (seconds)", "seconds": 2.0, "result": share}]
    folders = {"classifier": "classifier", "answers": "answers"}
    write_json(
        tmp_path / "wheel.json", {"recipe": "my wheel", "stages": stages, "folders": folders}
    )
    page = write_report(tmp_path).read_text("utf-8")
    Page(page)
    assert "70 documents, 50 of them good" in page
    assert "25.0% [5.0, 70.0]" in page.split('<section id="answers">')[1]
    assert "2 + 2 = &lt;b&gt;" in page


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset with near-duplicates of every similarity from 0.8 on, in two languages."""
    folder = tmp_path_factory.mktemp("near")
    rng = np.random.default_rng(5)
    rows = []
    for number in range(40):
        words = rng.choice(WORDS, 200).tolist()
        place, changed = int(rng.integers(20, 180)), int(rng.integers(0, 3))
        other = [*words[:place], "<b>new</b>", *words[place + changed :]]
        more = [f"and{extra}" for extra in range(int(rng.integers(0, 30)))]
        for text in (words, [*other, *more]):
            row = {"text": " ".join(text), "url": f"http://www.d{number % 3}.example/{number}"}
            rows.append(row | {"language": "en" if number % 2 else "de"})
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reader = JsonlReader(columns=("url", "language"))
    recipe = Recipe("near", (reader,), (FuzzyDedup(keep=(Longest(),)),))
    curate(recipe, [Source("a", str(folder / "a.jsonl"))], folder / "out", Settings(workers=1))
    return Dataset(folder / "out")


def test_report_shows_the_borderline_pairs_with_their_marks(near: Dataset) -> None:
    page = write_report(near.path).read_text("utf-8")
    Page(page)
    removed = [row for row in near.table("ledger").to_pylist() if row["dropped_by"]]
    removed.sort(key=lambda row: (row["similarity"], row["id"]))
    assert len(removed) > 30
    section = page.split('<section id="duplicates-0">')[1].split("</section>")[0]
    drawn = re.findall(r"<title>.*?: 0 kept, ([\d,]+) dropped</title>", section)
    assert sum(map(count, drawn)) == len(removed)
    pairs = section.split('<details class="borderline"')[1:]
    assert len(pairs) == 12
    texts = {row["id"]: row for kind in ("data", "dropped") for row in near.table(kind).to_pylist()}
    for pair, row in zip(pairs, removed, strict=False):
        assert f"<b>{row['similarity']:.4f}</b>" in pair
        assert f"gristmill why . {row['id']}" in pair
        assert f"<code>{row['matched_id']}</code>" in pair
        marked = re.findall(r"<mark>(.*?)</mark>", pair, re.DOTALL)
        assert marked
        kept = texts[row["matched_id"]]["text"]
        assert all(part in texts[row["id"]]["text"] and part in kept for part in marked)
        assert "&lt;b&gt;new&lt;/b&gt;" in pair
        shared, either = re.search(r"([\d,]+) of ([\d,]+) runs are in both", pair).groups()  # pyright: ignore[reportOptionalMemberAccess]
        assert np.float32(count(shared) / count(either)) == np.float32(row["similarity"])


def test_report_removal_tables_are_those_of_the_manifest(near: Dataset) -> None:
    page = write_report(near.path).read_text("utf-8")
    found = tables(page, "removal")
    for rows, by in zip(found, ("source", "language", "domain"), strict=True):
        worst = near.manifest["removal"][by]["worst"]
        assert len(worst) == len(rows) == {"source": 1, "language": 2, "domain": 3}[by]
        for row, group in zip(rows, worst, strict=True):
            assert row[:3] == [group["group"], f"{group['documents']}", f"{group['dropped']}"]
            part = share(group["dropped"], group["documents"])
            assert row[3:] == [part, f"near_duplicate {part}"]


def test_why_prints_a_near_duplicate_beside_its_copy(
    near: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in near.table("ledger").to_pylist() if row["dropped_by"])
    result = why(near, row["id"])
    found = result["comparison"]
    assert np.float32(found["jaccard"]) == np.float32(row["similarity"])
    assert json.loads(json.dumps(result))["comparison"]["spans"]
    for spans, text in (
        (found["spans"], result["text"]),
        (found["kept_copy_spans"], result["kept_copy"]["text"]),
    ):
        assert all(0 <= start < stop <= len(text) for start, stop in spans)
    console = Console(width=160, highlight=False, file=sys.stdout, force_terminal=True)
    monkeypatch.setattr("flows.console.console", console)
    print_why(result, compared(near, row))
    shown = capsys.readouterr().out
    assert f"kept copy {row['matched_id']}, similarity {row['similarity']:.3f}" in shown
    assert f"{found['shared']} of {found['shingles']} runs of 5 words" in shown
    assert re.search("\x1b\\[32m\\w+ \\w+", shown), "nothing is highlighted"
    assert "<b>new</b>" in shown


def test_why_prints_an_exact_duplicate_beside_its_copy_without_marks(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.console.console", Console(width=160, file=sys.stdout))
    (row,) = examples(dataset, "exact_duplicate", 1)
    result = why(dataset, row["id"])
    assert result["comparison"] is None
    print_why(result, compared(dataset, result["ledger"]))
    shown = capsys.readouterr().out
    assert f"kept copy {result['kept_copy']['id']}" in shown
    assert shown.count(" ".join(result["text"].split()[:4])) == 2
    assert "runs of" not in shown
