"""A chain of snapshots and takedowns gives what one run with the same lists gives."""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.gopher_quality import GopherQuality
from pipelines.compact import compact
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.exact import ExactDedup
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.dedup.keep import Highest, Longest, Oldest, Order
from pipelines.explain import why
from pipelines.index import INDEX
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source
from pipelines.step import Cut
from pipelines.takedown import takedown
from pipelines.takedown_list import read_takedown
from tests.laws.harness import ROOT, digest, kill_at_stages
from tests.pipelines.test_index import POLICIES, SETTINGS, STARTS, pages, span_recipe, state, write

DEDUP = ("exact_duplicate", "near_duplicate")
RECIPES = "tests/pipelines/test_takedown.py"


def recipe(keep: tuple[Order, ...] = (Longest(),)) -> Recipe:
    """A filter, a GroupStep, a PairStep: three phases, each of which drops documents."""
    quality = GopherQuality(min_mean_word_length=1.0, min_stop_words=0)
    steps = (quality, ExactDedup(keep=keep), Cut(), FuzzyDedup(keep=keep))
    return Recipe("snapshots", (JsonlReader(columns=("score", "url", "date")),), steps)


def longest() -> Recipe:
    return recipe()


NEVER_LISTED = {
    "text": " ".join(f"w{i}" for i in range(9000, 9060)),
    "date": "2020-01-01",
    "score": 0,
    "url": "https://x.org/never-listed",
}


def documents(rng: random.Random, number: int, starts: range | tuple = STARTS) -> list[dict]:
    """Makes chains of near-duplicates, exact copies, too short ones, and shared URLs."""
    rows = []
    for _ in range(number):
        start = rng.choice(starts)
        words = [f"w{i}" for i in range(start, start + rng.choice([60, 60, 62, 66, 40]))]
        row = {"text": " ".join(words), "date": f"2020-01-{rng.randrange(1, 28):02d}"}
        rows.append(row | {"score": rng.randrange(3), "url": f"https://x.org/{rng.randrange(30)}"})
    return rows


def against(folder: Path) -> Settings:
    return replace(SETTINGS, against=str(folder / "index"))


def snapshot(folder: Path, number: int, rows: list[dict], of: Recipe) -> Path:
    path = folder / f"s{number}.jsonl"
    write(path, rows)
    with path.open("a") as stream:
        stream.write("not json\n")
    curate(of, [Source(f"s{number}", str(path))], folder / f"out{number}", against(folder))
    return folder / f"out{number}"


def take(folder: Path, number: int, names: list[str], of: Recipe, copies: bool = True) -> Path:
    (folder / f"list{number}.txt").write_text("\n".join(names) + "\n")
    out = folder / f"down{number}"
    takedown(of, folder / f"list{number}.txt", out, against(folder), copies)
    return out


def batch(folder: Path, number: int, lists: list[Path], of: Recipe) -> Path:
    sources = [Source(f"s{n}", str(folder / f"s{n}.jsonl")) for n in range(number)]
    chosen = replace(SETTINGS, takedown=tuple(map(str, lists)))
    curate(of, sources, folder / "batch", chosen)
    return folder / "batch"


def rows(folder: Path, kind: str) -> list[dict]:
    return [row for part in Dataset(folder).batches(kind) for row in part.to_pylist()]


def copies_of(listed: set[str], ledger: dict[str, dict], texts: dict[str, str]) -> set[str]:
    """All that goes with listed documents, worked out from ledger rows one after the other."""

    def equal(names: set[str]) -> set[str]:
        return {i for i in texts if texts[i] in {texts[name] for name in names if name in texts}}

    first = listed | equal(listed)
    compared = [i for i, row in ledger.items() if row["dropped_by"] in (None, "near_duplicate")]
    shingles = {i: shingles_of(texts[i]) for i in compared}
    near = {
        i
        for i in compared
        for name in first & set(compared)
        if 5 * len(shingles[i] & shingles[name]) >= 4 * len(shingles[i] | shingles[name])
    }
    return first | near | equal(first | near)


def shingles_of(text: str) -> set[int]:
    (_, values) = FuzzyDedup().sets(pa.RecordBatch.from_pydict({"text": [text]}))
    return set(values.tolist())


@pytest.mark.parametrize("policy", POLICIES)
@given(
    seed=st.integers(0, 10**6),
    events=st.lists(st.sampled_from(["snapshot", "ids", "url", "alone"]), min_size=1, max_size=3),
)
@settings(max_examples=6)
def test_chain_with_takedowns_is_one_run_with_their_lists(policy, seed, events):
    rng, of = random.Random(seed), recipe(POLICIES[policy])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = [*documents(rng, 20), NEVER_LISTED]  # so that the one run keeps a document
        chain, lists, number = [snapshot(folder, 0, first, of)], [], 1
        for event in events:
            if event == "snapshot":
                chain.append(snapshot(folder, number, documents(rng, 12), of))
                number += 1
                continue
            kept, dropped, ledger = state(chain)
            asked = {i for i, r in ledger.items() if r["dropped_by"] in (None, *DEDUP)}
            texts = {i: r["text"] for i, r in (kept | dropped).items() if i in asked}
            left = sorted(
                i
                for i, row in ledger.items()
                if row["dropped_by"] != "taken_down" and row["url"] != NEVER_LISTED["url"]
            )
            names = rng.sample(left, min(3, len(left)))
            if event == "url":
                urls = sorted({ledger[i]["url"] for i in left} - {None})
                names = rng.sample(urls, min(2, len(urls)))
            if not names:
                continue
            chain.append(take(folder, len(lists), names, of, event != "alone"))
            lists.append(chain[-1])
            gone = set(read_takedown(chain[-1]).ids)
            listed = {i for i, row in ledger.items() if i in names or row["url"] in names}
            if event == "alone":
                assert gone == listed
            else:
                assert gone == listed | copies_of(listed, ledger, texts)
            revived = {row["id"] for row in rows(chain[-1], "revivals")}
            assert not gone & revived
        whole = batch(folder, number, lists, of)
        assert state(chain) == state([whole])
        compact(chain, folder / "from-chain")
        compact([whole], folder / "from-batch")
        assert digest(folder / "from-chain") == digest(folder / "from-batch")


@pytest.mark.parametrize("copies", [True, False])
def test_spans_that_were_cut_in_favour_of_what_is_taken_down_come_back(copies, tmp_path):
    rng, of = random.Random(2), span_recipe((Longest(),))
    chain, lists = [snapshot(tmp_path, 0, pages(rng, 20), of)], []
    for number in range(2):
        names = rng.sample(sorted(state(chain)[0]), 3)
        chain.append(take(tmp_path, number, names, of, copies))
        lists.append(chain[-1])
        if not number:
            chain.append(snapshot(tmp_path, 1, pages(rng, 12), of))
    rewritten = [row for part in chain for row in rows(part, "retractions") if row["text"]]
    assert any(row["dropped_by"] is None for row in rewritten)
    assert state(chain) == state([batch(tmp_path, 2, lists, of)])


def words(start: int, stop: int) -> str:
    return " ".join(f"w{i}" for i in range(start, stop))


SECRET = "Maryrose Quillfeather lives at 12 Harbour Row " + words(0, 60)
OTHER = "a different text altogether " + words(500, 560)


def by_text(folder: Path) -> dict[str, str]:
    found = {}
    for kind in ("data", "dropped"):
        found |= {row["text"]: row["id"] for row in rows(folder, kind) if row["text"]}
    return found


def test_no_text_of_it_is_left_in_index_output_and_compaction(tmp_path):
    of = recipe()
    longer = SECRET + " and more"
    parts = [[SECRET, OTHER, SECRET], [longer, "nearly nothing " + words(700, 760)]]
    for number, texts in enumerate(parts):
        snapshot(tmp_path, number, [{"text": text, "score": 1} for text in texts], of)
        (tmp_path / f"s{number}.jsonl").unlink()  # the sources are gone
    chain = [tmp_path / "out0", tmp_path / "out1"]
    assert any(b"Quillfeather" in p.read_bytes() for p in files(tmp_path / "index"))
    secret = next(r["id"] for r in rows(chain[0], "ledger") if r["dropped_by"] is None)
    chain.append(take(tmp_path, 0, [by_text(chain[0])[SECRET], secret], of))
    assert not any(b"Quillfeather" in p.read_bytes() for p in files(tmp_path / "index"))
    compact(chain, tmp_path / "clean")
    for folder in (chain[-1], tmp_path / "clean"):
        for kind in ("data", "dropped", "ledger", "retractions", "revivals", "redropped"):
            for row in rows(folder, kind):
                assert "Quillfeather" not in json.dumps(row)
    for row in [*rows(chain[-1], "retractions"), *rows(chain[-1], "redropped")]:
        if row["dropped_by"] == "taken_down":
            assert {name for name, value in row.items() if value is not None} <= {
                "id",
                "source",
                "origin",
                "url",
                "dropped_by",
            }
    gone = [row for row in rows(tmp_path / "clean", "ledger") if row["dropped_by"] == "taken_down"]
    assert len(gone) >= 3
    assert all(row["origin"]["path"] and row["text_bytes"] == 0 for row in gone)
    told = why(Dataset(chain[-1]), gone[0]["id"])
    assert (told["outcome"], told["text"]) == ("taken_down", None)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_copies_go_too_unless_they_are_to_stay(tmp_path):
    of = recipe()
    near = SECRET + " and more"
    for copies in (True, False):
        folder = tmp_path / str(copies)
        folder.mkdir()
        texts = [SECRET, SECRET, near, OTHER]
        first = snapshot(folder, 0, [{"text": text, "score": 1} for text in texts], of)
        assert {row["text"] for row in rows(first, "data")} == {near, OTHER}
        down = take(folder, 0, [by_text(first)[near]], of, copies)
        revived = [row["text"] for row in rows(down, "revivals")]
        manifest = Dataset(down).manifest
        if copies:
            assert revived == []
            assert (manifest["taken_down"]["listed"], manifest["taken_down"]["copies"]) == (1, 2)
            reasons = json.loads((down / "takedown.json").read_text())["documents"]
            assert sorted(row["why"] for row in reasons) == [
                "exact_duplicate",
                "listed",
                "near_duplicate",
            ]
        else:
            assert revived == [SECRET]
            assert manifest["taken_down"]["copies"] == 0
        assert manifest["against"]["total_kept"] == (1 if copies else 2)
        later = snapshot(folder, 1, [{"text": f"  {near}\n", "score": 1}], of)
        (row,) = [row for row in rows(later, "ledger") if row["error"] is None]
        assert row["dropped_by"] == ("taken_down" if copies else None)


def test_a_url_stays_away_from_later_snapshots(tmp_path):
    of, url = recipe(), "https://x.org/page"
    snapshot(tmp_path, 0, [{"text": SECRET, "url": url, "score": 1}, {"text": OTHER}], of)
    down = take(tmp_path, 0, [url], of)
    assert len(rows(down, "retractions")) == 1
    again = [{"text": words(900, 990), "url": url, "score": 1}, {"text": words(800, 880)}]
    later = snapshot(tmp_path, 1, again, of)
    assert sorted(str(row["dropped_by"]) for row in rows(later, "ledger")) == [
        "None",
        "error_invalid_json",
        "taken_down",
    ]
    assert rows(later, "dropped")[0]["text"] is None


def test_nothing_goes_through_a_chain_of_similarities(tmp_path):
    # each is like its neighbours only, and the walk keeps every other one
    chain = [words(start, start + 60) for start in range(0, 60, 6)]
    of = recipe(())
    first = snapshot(tmp_path, 0, [{"text": text, "score": 1} for text in chain], of)
    ledger = {row["id"]: row for row in rows(first, "ledger")}
    texts = {i: text for text, i in by_text(first).items()}
    listed = by_text(first)[chain[5]]
    down = take(tmp_path, 0, [listed], of)
    gone = set(read_takedown(down).ids)
    assert gone == copies_of({listed}, ledger, texts)
    assert {chain.index(texts[i]) for i in gone} <= {4, 5, 6}


def test_a_unit_that_loses_all_it_kept_has_no_keys_left(tmp_path):
    of = recipe((Oldest(), Highest("score"), Longest()))
    first = snapshot(tmp_path, 0, [{"text": SECRET, "date": "2020-01-02", "score": 1}], of)
    snapshot(tmp_path, 1, [{"text": OTHER, "date": "2020-01-02", "score": 1}], of)
    down = take(tmp_path, 0, [by_text(first)[SECRET]], of)
    assert Dataset(down).manifest["against"]["total_kept"] == 1


def test_a_recipe_without_global_steps_takes_a_list_in_one_run(tmp_path):
    write(tmp_path / "s0.jsonl", [{"text": SECRET}, {"text": OTHER}])
    of = Recipe("plain", (JsonlReader(),), (Cut(),))
    source = [Source("s0", str(tmp_path / "s0.jsonl"))]
    curate(of, source, tmp_path / "all", Settings(workers=1))
    (tmp_path / "list.txt").write_text(by_text(tmp_path / "all")[SECRET])
    chosen = Settings(workers=1, takedown=(str(tmp_path / "list.txt"),))
    manifest = curate(of, source, tmp_path / "clean", chosen)
    assert (manifest["kept"], manifest["dropped"]) == (1, 1)
    (rule,) = [rule for rule in manifest["rules"] if rule["name"] == "taken_down"]
    assert rule["dropped"] == 1
    assert manifest["removal"]["source"]["documents"] == 1
    assert curate(of, source, tmp_path / "clean", chosen) == manifest
    with pytest.raises(ValueError, match="is finished, with other takedown lists"):
        curate(of, source, tmp_path / "clean", Settings(workers=1))


def test_wrong_lists_are_refused_and_change_nothing(tmp_path):
    of = recipe()
    first = snapshot(tmp_path, 0, [{"text": SECRET, "score": 1}, {"text": OTHER}], of)
    before = digest(tmp_path / "index")
    known = by_text(first)[SECRET]
    for names, message in (
        ([known, "0" * 32], f"1 of the 2 ids of the list are in no snapshot of .*: {'0' * 32}"),
        (["https://nowhere.org/"], "1 of the 1 urls of the list are in no snapshot"),
        ([known, "Quillfeather"], "line 2: 'Quillfeather' is neither a document id"),
        ([""], "names nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            take(tmp_path, 0, names, of)
        assert not (tmp_path / "down0").exists()
        after = digest(tmp_path / "index")
        assert {name: after[name] for name in before} == before
    with pytest.raises(ValueError, match="there is no such file; wanted a text file"):
        takedown(of, tmp_path / "absent.txt", tmp_path / "x", against(tmp_path))
    (tmp_path / "list0.txt").write_text(known)
    with pytest.raises(ValueError, match="is no index of snapshots"):
        takedown(of, tmp_path / "list0.txt", tmp_path / "x", Settings(against=str(first)))
    with pytest.raises(ValueError, match="is an index of recipe snapshots with fingerprint"):
        takedown(recipe(()), tmp_path / "list0.txt", tmp_path / "x", against(tmp_path))
    with pytest.raises(ValueError, match="an index remembers what was taken down"):
        Settings(against="index", takedown=("list",))
    down = take(tmp_path, 0, [known], of)
    assert takedown(of, tmp_path / "list0.txt", down, against(tmp_path)) == Dataset(down).manifest
    with pytest.raises(ValueError, match="is finished, with another list"):
        takedown(of, tmp_path / "list0.txt", down, against(tmp_path), False)
    with pytest.raises(ValueError, match="all 1 documents of the list have been taken down"):
        takedown(of, tmp_path / "list0.txt", tmp_path / "twice", against(tmp_path))


def test_a_list_that_a_takedown_wrote_is_a_list(tmp_path):
    of = recipe()
    first = snapshot(tmp_path, 0, [{"text": t, "score": 1} for t in (SECRET, SECRET, OTHER)], of)
    down = take(tmp_path, 0, [by_text(first)[SECRET]], of)
    found = read_takedown(down)
    assert len(found.ids) == 2
    assert len(found.texts) == 1
    assert read_takedown(down / "takedown.json") == found


STAGES = (
    "look up the list",
    "look for near-duplicates",
    "look for equal texts",
    "count what goes",
    "map (GopherQuality)",
    "group (ExactDedup)",
    "link (FuzzyDedup)",
    "compare (FuzzyDedup)",
    "carry over (FuzzyDedup)",
    "compare earlier snapshots",
)


def test_kill_at_every_stage_of_a_takedown_gives_the_same_bytes(tmp_path):
    rng, of = random.Random(5), recipe()
    for number in range(2):
        snapshot(tmp_path, number, documents(rng, 2_000, range(0, 20_000, 3)), of)
    ledger = [row for n in range(2) for row in rows(tmp_path / f"out{n}", "ledger")]
    names = rng.sample(sorted(row["id"] for row in ledger), 40)
    (tmp_path / "list.txt").write_text("\n".join(names))
    shutil.copytree(tmp_path / "index", tmp_path / "pristine")
    command = [sys.executable, "-m", "flows.cli", "takedown", f"{RECIPES}:longest"]
    command += [str(tmp_path / "list.txt"), "--against", str(tmp_path / "index"), "--workers", "2"]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], cwd=ROOT, check=True)
    wanted, index = digest(tmp_path / "whole"), digest(tmp_path / "index")
    assert Dataset(tmp_path / "whole").manifest["against"]["revivals"] > 0
    shutil.rmtree(tmp_path / "index")
    shutil.copytree(tmp_path / "pristine", tmp_path / "index")
    command += ["--out", str(tmp_path / "out")]
    kill_at_stages(command, STAGES)
    subprocess.run(command, cwd=ROOT, check=True)
    assert digest(tmp_path / "out") == wanted
    assert digest(tmp_path / "index") == index
    # killed when the dataset was there and the index did not know of it: both states side by side
    shutil.copytree(tmp_path / "pristine", tmp_path / "index", dirs_exist_ok=True)
    subprocess.run(command, cwd=ROOT, check=True)
    assert digest(tmp_path / "index") == index
    # and when the index knew and had not yet removed what it knew before
    last = (tmp_path / "index" / INDEX).read_bytes()
    shutil.copytree(tmp_path / "pristine", tmp_path / "index", dirs_exist_ok=True)
    (tmp_path / "index" / INDEX).write_bytes(last)
    subprocess.run(command, cwd=ROOT, check=True)
    assert digest(tmp_path / "index") == index


def test_command_line_takes_down_and_says_what_follows(tmp_path):
    of = recipe()
    first = snapshot(tmp_path, 0, [{"text": t, "score": 1} for t in (SECRET, SECRET, OTHER)], of)
    (tmp_path / "list.txt").write_text(by_text(first)[SECRET])
    command = [sys.executable, "-m", "flows.cli", "takedown", f"{RECIPES}:longest"]
    command += [str(tmp_path / "list.txt"), "--against", str(tmp_path / "index"), "--workers", "1"]
    command += ["--out", str(tmp_path / "down")]
    found = [
        subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=True)
        for more in ([], ["--json"])
    ]
    assert "taken down: 2 documents, 1 of the list and 1 copies" in found[0].stdout
    assert "kept of all snapshots: 1 of 4" in found[0].stdout
    assert json.loads(found[1].stdout) == Dataset(tmp_path / "down").manifest
