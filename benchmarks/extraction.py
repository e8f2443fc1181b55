"""HtmlText on the article extraction benchmark: F1, precision, recall, and MB of HTML per CPU s.

181 news pages with the text that a person marked as article body. Metric and pages are those of
github.com/scrapinghub/article-extraction-benchmark (evaluate.py): multisets of 4-grams of words,
precision and recall averaged over pages, F1 of the two means. Other settings of resiliparse and
inscriptis (all text, no choice of main content) run on the same bytes.

    python -m benchmarks.extraction [--articles ../shared/data/articles]
"""

import argparse
import gzip
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from inscriptis import get_text

from benchmarks.machine import ROOT, about, write_result
from pipelines.extract import HtmlText, decode_page

ARTICLES = ROOT.parent / "shared" / "data" / "articles"
WORD = re.compile(r"\w+")
SHINGLE = 4
ROUNDS = 3
SETTINGS = {
    "gristmill (HtmlText())": HtmlText(),
    "with alternative texts": HtmlText(alt_texts=True),
    "with comments": HtmlText(comments=True),
    "with authors and dates": HtmlText(post_meta=True),
    "with links": HtmlText(links=True),
    "without list bullets": HtmlText(list_bullets=False),
    "without line structure": HtmlText(preserve_formatting=False),
    "without headline (h1)": HtmlText(skip_elements=("h1",)),
    "without page header": HtmlText(skip_elements=("header",)),
    "resiliparse main content, its defaults": HtmlText(
        alt_texts=True, comments=True, post_meta=True
    ),
    "resiliparse all text": HtmlText(
        main_content=False, alt_texts=True, comments=True, post_meta=True
    ),
}
PUBLISHED = {
    "source": "README of the benchmark, results of its latest evaluation",
    "f1": {
        "rs_trafilatura": 0.970,
        "trafilatura 2.0.0": 0.958,
        "readability_js 0.6.0": 0.947,
        "goose3 3.1.20": 0.896,
        "justext 3.0.2": 0.804,
        "inscriptis 2.6.0": 0.679,
        "html-text 0.7.0": 0.665,
    },
}


class Score(NamedTuple):
    """Quality of extraction over all pages."""

    f1: float
    precision: float
    recall: float


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """Returns how often each run of four words occurs; a shorter text is one run."""
    words = WORD.findall(text)
    if not words:
        return Counter()
    last = max(1, len(words) - SHINGLE + 1)
    return Counter(tuple(words[start : start + SHINGLE]) for start in range(last))


def score(truth: dict[str, str], texts: dict[str, str]) -> Score:
    """Compares extracted texts with the true ones, page by page."""
    precision, recall = [], []
    for page, true_text in truth.items():
        true, found = shingles(true_text), shingles(texts[page])
        common = (true & found).total()
        if found:
            precision.append(common / found.total())
        if true:
            recall.append(common / true.total())
    p, r = statistics.mean(precision), statistics.mean(recall)
    return Score(2 * p * r / (p + r), p, r)


def load_articles(folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the pages and their true texts."""
    truth = json.loads((folder / "ground-truth.json").read_text("utf-8"))
    pages = {
        name: gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes()) for name in truth
    }
    return pages, {name: entry["articleBody"] for name, entry in truth.items()}


def measure(
    pages: dict[str, bytes], truth: dict[str, str], extract: Callable[[bytes], str]
) -> dict[str, float]:
    """Extracts all pages, best of ROUNDS, and scores them."""
    seconds = []
    texts = {}
    for _ in range(ROUNDS):
        start = time.process_time()
        texts = {name: extract(page) for name, page in pages.items()}
        seconds.append(time.process_time() - start)
    result = {name: round(value, 4) for name, value in score(truth, texts)._asdict().items()}
    size = sum(map(len, pages.values()))
    return result | {
        "cpu_s": round(min(seconds), 3),
        "mb_per_cpu_s": round(size / 1e6 / min(seconds), 1),
    }


def main() -> None:
    """Writes benchmarks/results/extraction.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=Path, default=ARTICLES)
    folder = parser.parse_args().articles
    if not folder.is_dir():
        sys.exit(f"{folder} does not exist; clone the benchmark and name it with --articles")
    pages, truth = load_articles(folder)
    results = {
        name: measure(pages, truth, lambda page, step=step: step.extract(page, "text/html") or "")
        for name, step in SETTINGS.items()
    }
    results["inscriptis"] = measure(
        pages, truth, lambda page: get_text(decode_page(page, "text/html"))
    )
    write_result(
        "extraction",
        {
            "what": "article bodies of news pages, 4-gram F1; HTML bytes in per CPU second",
            "pages": len(pages),
            "html_mb": round(sum(map(len, pages.values())) / 1e6, 2),
            "measured": results,
            "published": PUBLISHED,
            "machine": about(["gristmill", "resiliparse", "inscriptis", "lxml"]),
        },
    )


if __name__ == "__main__":
    main()
