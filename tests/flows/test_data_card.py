import json
import re
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st

from filters.gopher_quality import GopherQuality
from flows.data_card import hub_licence, make_card, size_category, survey
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.pieces import PieceDedup
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source

SENTENCE = "the number of this page with all that it has is {} and there are more of them"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    rows = [{"text": SENTENCE.format(i), "licence": None} for i in range(40)]
    rows += [{"text": "short", "licence": "MIT"}] * 3 + [{"text": ""}]
    rows += [{"text": SENTENCE.format("| odd |"), "licence": "Apache-2.0"}]
    lines = [json.dumps(row) for row in rows] + ["{broken"]
    (folder / "in.jsonl").write_text("\n".join(lines))
    steps = (GopherQuality(min_words=5, stop_words=("the", "`x|y`"), min_stop_words=1),)
    recipe = Recipe("pages", (JsonlReader(columns=("licence",)),), steps)
    curate(recipe, [Source("odd", str(folder))], folder / "out", Settings(workers=1))
    return Dataset(folder / "out")


@pytest.fixture(scope="module")
def card(dataset):
    return make_card(dataset, "me/pages", survey(dataset, ("data", "ledger", "dropped")))


def tables(card: str) -> dict[str, list[list[str]]]:
    """Returns the tables of a card by their heading, without their heads, as cells."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in card.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("|") and not line.startswith("|--"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(heading, []).append(cells)
    return found


def test_head_names_configurations_counts_features_and_licences(dataset, card):
    head = DatasetCard(card).data
    manifest = dataset.manifest
    assert [c["config_name"] for c in head.configs] == ["documents", "ledger", "dropped"]
    assert [c.get("default", False) for c in head.configs] == [True, False, False]
    infos = {info["config_name"]: info for info in head.dataset_info}
    counts = {name: info["splits"][0]["num_examples"] for name, info in infos.items()}
    assert counts == {
        "documents": manifest["kept"],
        "ledger": manifest["documents_in"],
        "dropped": manifest["dropped"],
    }
    for kind, name in (("data", "documents"), ("ledger", "ledger"), ("dropped", "dropped")):
        table = dataset.table(kind)
        assert infos[name]["dataset_size"] == pytest.approx(table.nbytes, rel=0.05)
        assert [f["name"] for f in infos[name]["features"]] == table.column_names
        sizes = [e["bytes"] for e in manifest["files"] if e["path"].startswith(f"{kind}/")]
        assert infos[name]["download_size"] == sum(sizes)
    assert head.license == ["apache-2.0", "unknown"]
    assert head.language is None
    assert head.size_categories == ["n<1K"]


def test_body_tells_what_was_cut(tmp_path, card):
    text = "\n".join(["a line that every one of these pages has", "and a line of page {}"])
    lines = [json.dumps({"text": text.format(i)}) + "\n" for i in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    recipe = Recipe("pages", (JsonlReader(),), (PieceDedup(min_bytes=20),))
    curate(recipe, [Source("s", str(tmp_path))], tmp_path / "out", Settings(workers=1))
    dataset = Dataset(tmp_path / "out")
    (head, row) = tables(make_card(dataset, "me/pages", survey(dataset, ("data", "ledger"))))[
        "What was cut"
    ]
    assert head[1] == "column of the ledger"
    assert row == ["PieceDedup", "`duplicate_line_spans`", "4", "4", "164 B"]
    assert "What was cut" not in tables(card)


def test_body_tells_steps_funnel_sources_and_limits_of_the_manifest(dataset, card):
    manifest, found = dataset.manifest, tables(card)
    assert manifest["recipe"]["fingerprint"] in card
    assert f"gristmill {manifest['gristmill']}" in card
    funnel = found["What was dropped"]
    left = manifest["documents_in"]
    assert funnel[1][4] == str(left)
    for row in funnel[2:]:
        left -= int(row[2])
        assert row[4] == str(left)
    assert left == manifest["kept"] == 41
    assert [row[0] for row in funnel[2:]] == [
        "`error_invalid_json`",
        "`no_text`",
        "`too_few_words`",
    ]
    (source,) = found["Sources"][1:]
    assert source[:2] == ["`odd`", "46"]
    assert source[3] == "41"
    assert [row[0] for row in found["Rules"][1:]] == [f"`{r['name']}`" for r in manifest["rules"]]
    assert found["Languages and licences"][1:] == [["not known", "40"], ["Apache-2.0", "1"]]
    limits = card.split("## Known limits")[1].split("## ")[0]
    assert "The licence of 40 of 41 documents is not known." in limits
    assert "No step compares documents with each other" in limits
    assert "invalid_json 1" in limits
    assert "`too_many_words`" in limits
    assert "Languages are" not in limits
    assert "not published" not in limits
    inputs = (dataset.path.parent / "in.jsonl").stat().st_size
    assert found["Provenance"][1:] == [["`odd`", "1", f"{inputs:,}"]]


def test_every_row_of_a_table_has_the_cells_of_its_head(card):
    for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_card_without_a_ledger_does_not_speak_of_one(dataset):
    card = make_card(dataset, "me/pages", survey(dataset, ("data",)), "ODC-By-1.0")
    head = DatasetCard(card).data
    assert head.license == "odc-by"
    assert head.dataset_info["config_name"] == "documents"
    assert "The publisher gives the whole as `ODC-By-1.0`" in card
    assert "ledger" not in card.split("---\n")[2]
    assert "The texts of dropped documents are not published." in card


def test_card_of_the_same_dataset_is_the_same_and_names_no_place(dataset, card):
    again = Dataset(dataset.path)
    assert make_card(again, "me/pages", survey(again, ("data", "ledger", "dropped"))) == card
    assert str(dataset.path.parent) not in card
    assert str(Path.home()) not in card


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("MIT", "mit"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("LGPL-2.1-only", "lgpl-2.1"),
        ("ODC-By-1.0", "odc-by"),
        ("CC-BY-SA-4.0", "cc-by-sa-4.0"),
        ("MIT AND Apache-2.0", "other"),
        ("unknown", "unknown"),
    ],
)
def test_licences_get_the_names_of_the_hub(name, short):
    assert hub_licence(name) == short


@given(st.integers(0, 10**13))
def test_size_category_holds_the_number(rows):
    units = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

    def number(text: str) -> int:
        return int(text.rstrip("KMBT")) * units[text.lstrip("0123456789")]

    category = size_category(rows)
    if category.startswith("n>"):
        assert rows >= number(category[2:])
    else:
        low, _, high = category.rpartition("<n<")
        below, above = (number(low), high) if low else (0, category.removeprefix("n<"))
        assert below <= rows < number(above)
