"""What the report says of documents that links alone would have dropped."""

import json
from html import escape
from pathlib import Path

from flows.report import write_report
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source
from tests.flows.test_report import Page

TAIL = "<b>&</b>"


def page_of(folder: Path, texts: dict[str, list[str]]) -> tuple[Dataset, str]:
    folder.mkdir(exist_ok=True)
    for name, given in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in given)
        (folder / f"{name}.jsonl").write_text(lines)
    sources = [Source(name, str(folder / f"{name}.jsonl")) for name in texts]
    recipe = Recipe("links", (JsonlReader(),), (FuzzyDedup(),))
    curate(recipe, sources, folder / "out", Settings(workers=1))
    dataset = Dataset(folder / "out")
    return dataset, write_report(dataset.path).read_text("utf-8")


def section(page: str) -> str:
    return page.split('<section id="closure-0">')[1].split("</section>")[0]


def test_report_lists_what_links_alone_would_drop(tmp_path):
    chain = [" ".join(f"w{n}" for n in range(i, i + 105)) + f" {TAIL}" for i in range(0, 205, 5)]
    alone = ["nothing like it " * 3]
    dataset, page = page_of(tmp_path, {"chain": chain, "other": alone})
    rows = dataset.table("ledger").to_pylist()
    (first,) = {row["near_duplicate_component_id"] for row in rows if row["source"] == "chain"}
    stay = [row for row in rows if row["source"] == "chain" and not row["dropped_by"]]
    only = sorted(row["id"] for row in stay if row["id"] != first)
    found = section(page)
    Page(found)
    cells = "".join(found.split())
    number, gone = len(only), len(chain) - len(stay)
    share = f"{100 * number / 41:.1f}%"
    for name, counts in {"chain": (41, gone, number, share), "other": (1, 0, 0, "0%")}.items():
        row = "".join(f'<tdclass="n">{count}</td>' for count in counts)
        assert f'<tdclass="mono">{name}</td>{row}' in cells
    assert f"they would have dropped {number + gone} documents" in found
    assert "41 documents are in 1 such groups, the largest has 41" in found
    assert [part.split("<")[0] for part in found.split("kept, too</span> <code>")[1:]] == only[:5]
    assert found.count(f"first of its group</span> <code>{first}</code>") == 5
    assert escape(TAIL) in found
    assert TAIL not in found


def test_report_without_candidates_says_so(tmp_path):
    _, page = page_of(tmp_path, {"a": ["one two three four five six", "seven eight nine ten"]})
    assert "No two documents were a candidate pair." in section(page)
