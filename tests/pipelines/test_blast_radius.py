"""Removal by source, language and domain: the counts, the limits and what a stopped run says."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import removal
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.exact import ExactDedup
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.limits import DIMENSIONS, Limit
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source
from pipelines.removal import COUNTS, RemovalWriter, count_removal, domains, whole_groups


def test_domains_are_hosts_without_www() -> None:
    hosts = {
        "http://www.Example.org/a": "example.org",
        "https://user:word@sub.example.org:8080/a?b=//c.d": "sub.example.org",
        "HTTP://EXAMPLE.ORG.": "example.org",
        "//example.org#www.other.org": "example.org",
        " https://[2001:db8::1]:443/": "[2001:db8::1]",
        "https://www.wwwwidgets.com": "wwwwidgets.com",
        "https://www.": "www",
        "https://B\u00dcCHER.example/x": "b\u00fccher.example",
        "file:///tmp/a": None,
        "example.org/a": None,
        "mailto:a@example.org": None,
        "": None,
    }
    assert domains(pa.array([*hosts, None])).to_pylist() == [*hosts.values(), None]


RULES = st.sampled_from(["kept", "near_duplicate", "too_few_words", "error_json"])
NAMES = st.one_of(st.none(), st.sampled_from(["a", "b", "c", "", "\u00e9"]), st.text(max_size=3))
ROWS = st.lists(st.tuples(NAMES, NAMES, RULES), max_size=60)


def batches(rows: list[tuple[Any, ...]]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Returns kept and dropped documents with source, language and url."""
    tables = []
    for kept in (True, False):
        mine = [row for row in rows if (row[2] == "kept") == kept]
        columns = {"source": ["s"] * len(mine), "language": [row[0] for row in mine]}
        columns["url"] = [row[1] and f"http://{row[1]}/x" for row in mine]
        columns |= {} if kept else {"dropped_by": [row[2] for row in mine]}
        schema = pa.schema([(name, pa.string()) for name in columns])
        tables.append(pa.RecordBatch.from_pydict(columns, schema=schema))
    return tables[0], tables[1]


def counted(rows: list[tuple[Any, ...]]) -> Counter[tuple[str, str, str]]:
    wanted: Counter[tuple[str, str, str]] = Counter()
    for language, name, rule in rows:
        host = domains(pa.array([name and f"http://{name}/x"], pa.string()))[0].as_py()
        for by, group in (("source", "s"), ("language", language), ("domain", host)):
            if group is not None:
                wanted[by, group, rule] += 1
    return wanted


@given(st.lists(ROWS, max_size=4), st.integers(1, 40), st.integers(24, 60))
@settings(max_examples=60)
def test_counts_are_exact_however_often_they_are_written_and_spread(
    tmp_path_factory: pytest.TempPathFactory,
    units: list[list[tuple[Any, ...]]],
    unit_rows: int,
    sum_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("counts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removal, "UNIT_ROWS", unit_rows)
        patch.setattr(removal, "SUM_ROWS", sum_rows)
        patch.setattr(removal, "PARTITIONS", 3)
        paths = []
        for number, rows in enumerate(units):
            paths.append(folder / f"{number}.arrow")
            with RemovalWriter(paths[-1]) as writer:
                for start in range(0, len(rows), 7):
                    writer.add(*batches(rows[start : start + 7]))
        tables = list(whole_groups(paths, folder / "aside"))
    assert not (folder / "aside").exists()
    seen: set[tuple[str, str]] = set()
    for table in tables:
        assert table.schema == COUNTS
        groups = {(row["by"], row["group"]) for row in table.to_pylist()}
        assert not groups & seen, "a group is in two tables"
        seen |= groups
    found = [row for table in tables for row in table.to_pylist()]
    got = {(row["by"], row["group"], row["rule"]): row["documents"] for row in found}
    assert len(got) == len(found)
    assert got == dict(sum((counted(rows) for rows in units), Counter()))


def test_a_million_domains_are_never_held_together(tmp_path: Path) -> None:
    paths = []
    for unit in range(5):
        paths.append(tmp_path / f"{unit}.arrow")
        with RemovalWriter(paths[-1]) as writer:
            for start in range(0, 200_000, 20_000):
                names = np.arange(start, start + 20_000) + 150_000 * unit
                url = pc.binary_join_element_wise("http://d", pa.array(names).cast("string"), "")
                kept = {"source": pa.repeat("s", 20_000), "language": pa.nulls(20_000, "string")}
                dropped = {name: column[:0] for name, column in kept.items()}
                dropped |= {"url": url[:0], "dropped_by": url[:0]}
                writer.add(
                    pa.RecordBatch.from_pydict(kept | {"url": url}),
                    pa.RecordBatch.from_pydict(dropped),
                )
        with pa.OSFile(str(paths[-1])) as file:
            reader = pa.ipc.open_file(file)
            sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        assert max(sizes) <= removal.UNIT_ROWS
    tables = list(whole_groups(paths, tmp_path / "aside"))
    assert len(tables) > 1
    assert max(map(len, tables)) <= removal.SUM_ROWS
    domain = [table.filter(pc.equal(table["by"], "domain")) for table in tables]
    assert sum(map(len, domain)) == 800_000
    assert sum(pc.sum(table["documents"]).as_py() or 0 for table in domain) == 1_000_000


def test_count_removal_of_no_documents_is_empty() -> None:
    assert len(count_removal(*batches([]))) == 0


TEXT = "the page of {} has its own words and number {} of the river, that is to be with light"
WORDS = [f"{a}{b}" for a in "bcdfghjkl" for b in ("an", "er", "ion", "ot", "um", "ys")]


def write_web(folder: Path) -> list[Source]:
    """Writes pages of three domains and two languages; those of the templated one are alike."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    rows = []
    same, other = (" ".join(rng.choice(WORDS, 120)) for _ in range(2))
    for number in range(1_200):
        prose = " ".join(rng.choice(WORDS, 40))
        pages = [
            ("https://good.example/", "en", TEXT.format("good", number) + prose),
            ("http://www.templated.example/", "de", f"{same} this is page {number}"),
        ]
        pages += [("https://small.example/", "en", other)] if number < 900 else []
        for address, language, text in pages:
            rows.append({"text": text, "url": f"{address}{number}", "language": language})
        rows.append({"text": f"no address {number} {prose}"})
    for name, part in (("one", rows[::2]), ("two", rows[1::2])):
        lines = (json.dumps(row) for row in part)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return [Source(name, str(folder / f"{name}.jsonl")) for name in ("one", "two")]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    return write_web(tmp_path_factory.mktemp("web") / "in")


def recipe(*limits: Limit) -> Recipe:
    reader = JsonlReader(columns=("url", "language"))
    return Recipe("web", (reader,), (ExactDedup(), FuzzyDedup()), limits=limits)


@pytest.fixture(scope="module")
def dataset(web: list[Source], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("whole") / "out"
    curate(recipe(), web, out, Settings(workers=1))
    return Dataset(out)


def test_manifest_has_the_shares_that_the_files_have(dataset: Dataset) -> None:
    rows = [row | {"rule": "kept"} for row in dataset.table("data").to_pylist()]
    rows += [row | {"rule": row["dropped_by"]} for row in dataset.table("dropped").to_pylist()]
    found = dataset.manifest["removal"]
    for by in DIMENSIONS:
        outcomes: dict[str, Counter[str]] = {}
        for row in rows:
            host = (row["url"] or "//").split("/")[2].removeprefix("www.")
            if group := host if by == "domain" else row[by]:
                outcomes.setdefault(group, Counter())[row["rule"]] += 1
        assert found[by]["groups"] == len(outcomes)
        assert found[by]["documents"] == sum(n.total() for n in outcomes.values())
        for group in found[by]["worst"]:
            outcome = outcomes.pop(group["group"])
            assert group["documents"] == outcome.total()
            assert group["dropped"] == outcome.total() - outcome["kept"]
            assert group["rules"] == {rule: n for rule, n in outcome.items() if rule != "kept"}
        assert not outcomes
        shares = [group["dropped"] / group["documents"] for group in found[by]["worst"]]
        assert shares == sorted(shares, reverse=True)
    assert [group["group"] for group in found["domain"]["worst"]] == [
        "templated.example",
        "small.example",
        "good.example",
    ]


def test_limits_change_no_byte_and_other_workers_neither(
    dataset: Dataset, web: list[Source], tmp_path: Path
) -> None:
    loose = recipe(Limit("domain", 1.0), Limit("language", 1.0, rule="near_duplicate"))
    curate(loose, web, tmp_path / "out", Settings(workers=2))
    assert Dataset(tmp_path / "out").identity == dataset.identity


def groups(pattern: str, text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text)
    assert found, text
    return found.groups()


def test_a_domain_over_its_limit_stops_before_commit_with_examples_of_both_copies(
    dataset: Dataset, web: list[Source], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    limit = Limit("domain", 0.9, rule="near_duplicate")
    with pytest.raises(RuntimeError) as stopped:
        curate(recipe(limit), web, out, Settings(workers=1))
    assert not (out / "manifest.json").exists()
    head, examples = str(stopped.value).split("\nExamples:\n")
    assert head == (
        "web: rule near_duplicate would drop 1199 of 1200 documents of domain templated.example "
        "that reach it (99.9%); the limit is 90%. Nothing is committed. If this is right, raise "
        "the max_share of Limit(by='domain', rule='near_duplicate') in the recipe and run the "
        "same command again: only the checks are repeated."
    )
    lines = examples.split("\n")
    assert len(lines) == 6
    ledger = {row["id"]: row for row in dataset.table("ledger").to_pylist()}
    texts = {
        row["id"]: row["text"]
        for kind in ("data", "dropped")
        for row in dataset.table(kind).to_pylist()
    }
    for dropped, kept in zip(lines[::2], lines[1::2], strict=True):
        name, place, text = groups(r"  (\w{32}) (\S+\.jsonl): (.+)", dropped)
        assert place == ledger[name]["origin"]["path"]
        assert texts[name].startswith(text)
        similarity, match, copy = groups(r"    is like \((.+)\) (\w{32}) \S+: (.+)", kept)
        assert match == ledger[name]["matched_id"]
        assert similarity == f"{ledger[name]['similarity']:.3f}"
        assert texts[match].startswith(copy)
    records = sorted((out / ".work").rglob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in (*records, *out.glob("*/*.parquet"))}
    assert len(before) > 6
    with pytest.raises(RuntimeError, match="of domain templated"):
        curate(recipe(limit), web, out, Settings(workers=1))
    assert {path: path.stat().st_mtime_ns for path in before} == before, "work was done twice"
    curate(recipe(Limit("domain", 1.0, rule="near_duplicate")), web, out, Settings(workers=1))
    assert Dataset(out).identity == dataset.identity


def stop(limits: tuple[Limit, ...], web: list[Source], tmp_path: Path) -> str:
    with pytest.raises(RuntimeError) as stopped:
        curate(recipe(*limits), web, tmp_path / "out", Settings(workers=1))
    return str(stopped.value)


def test_a_language_over_the_limit_of_any_rule_says_all_of_it(
    web: list[Source], tmp_path: Path
) -> None:
    limits = (Limit("language", 0.5), Limit("domain", 0.5, 500))
    message = stop(limits, web, tmp_path)
    assert (
        "the rules together would drop 1199 of 1200 documents of language de (99.9%); " in message
    )
    assert "the limit is 50%" in message
    assert (
        "Over their limits as well: domain templated.example (any rule: 99.9%), "
        "domain small.example (any rule: " in message
    )


def test_a_limit_judges_only_what_reaches_its_rule(web: list[Source], tmp_path: Path) -> None:
    # 899 of the 900 copies on small.example fall to exact_duplicate: at most one reaches the next
    one = Limit("domain", 0.0, min_documents=2, rule="near_duplicate")
    message = stop((one,), web, tmp_path)
    assert "small.example" not in message
    first = Limit("domain", 0.9, min_documents=900, rule="exact_duplicate")
    assert "899 of 900 documents of domain small.example that reach it" in stop(
        (first,), web, tmp_path
    )


def test_a_limit_by_something_that_no_document_has_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the data of the river and the tree have light"
    lines = [json.dumps({"text": f"{text} {number}"}) for number in range(20)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    plain = Recipe("plain", (JsonlReader(),), (ExactDedup(),), limits=(Limit("domain", 0.5),))
    source = Source("s", str(tmp_path / "in.jsonl"))
    curate(plain, [source], tmp_path / "out", Settings(workers=1))
    assert "no document has a url, so the limits by domain judge nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"by": "host", "max_share": 0.5}, "by is 'host'; wanted one of: source, language, domain"),
        ({"by": "source", "max_share": 1.5}, "max_share is 1.5; wanted a share from 0 to 1"),
        (
            {"by": "source", "max_share": 0.5, "min_documents": 0},
            "min_documents is 0; wanted 1 or more",
        ),
    ],
)
def test_limits_out_of_range_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"Limit: {re.escape(words)}"):
        Limit(**arguments)


def test_a_limit_of_an_unknown_rule_is_refused() -> None:
    with pytest.raises(
        ValueError, match="a limit by domain names rule 'absent'; rules here: exact"
    ):
        recipe(Limit("domain", 0.5, rule="absent"))
