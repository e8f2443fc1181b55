"""Snapshots against an index give what one run over everything gives."""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.compact import compact
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.exact import ExactDedup
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.dedup.keep import Highest, Longest, Oldest, Order
from pipelines.dedup.minhash import Shingles
from pipelines.dedup.pieces import PieceDedup
from pipelines.dedup.substring import SubstringDedup
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source
from pipelines.step import Cut
from tests.laws.harness import ROOT, digest, kill_at_stages

POLICIES: dict[str, tuple[Order, ...]] = {
    "by id": (),
    "longest": (Longest(),),
    "oldest, then score": (Oldest(), Highest("score")),
}
SETTINGS = Settings(workers=1, memory=2 << 30)


Make = Callable[[tuple[Order, ...]], Recipe]


def recipe(keep: tuple[Order, ...]) -> Recipe:
    steps = (ExactDedup(keep=keep), Cut(), FuzzyDedup(keep=keep))
    return Recipe("snapshots", (JsonlReader(columns=("score",)),), steps)


def span_recipe(keep: tuple[Order, ...]) -> Recipe:
    steps = (
        PieceDedup(min_bytes=12, keep=keep),
        ExactDedup(keep=keep),
        SubstringDedup(min_bytes=24, bounds="line", keep=keep),
        FuzzyDedup(min_similarity=0.6, shingles=Shingles(size=2), keep=keep),
    )
    return Recipe("snapshots", (JsonlReader(columns=("score",)),), steps)


STARTS = (0, 3, 6, 9, 12, 15, 400, 403, 406, 1_000, 2_000)


def documents(rng: random.Random, number: int, starts: Sequence[int] = STARTS) -> list[dict]:
    """Makes chains of near-duplicates, exact copies, and documents that are alone."""
    rows = []
    for _ in range(number):
        start = rng.choice(starts)
        words = [f"w{i}" for i in range(start, start + rng.choice([60, 60, 62, 66]))]
        row = {"text": " ".join(words), "date": f"2020-01-{rng.randrange(1, 28):02d}"}
        rows.append(row | {"score": rng.randrange(3)})
    return rows


def pages(rng: random.Random, number: int) -> list[dict]:
    """Makes documents that share lines, runs of short lines and most of their words."""
    rows = []
    for _ in range(number):
        lines = [f"v{rng.randrange(4)} v{rng.randrange(4)}" for _ in range(rng.randrange(3, 9))]
        if rng.random() < 0.7:
            lines.insert(0, f"a line of which there are {rng.randrange(6)} kinds")
        if rng.random() < 0.5:
            start = rng.randrange(4)
            lines += [f"short {i}" for i in range(start, start + 7)]
        row = {"text": "\n".join(lines), "date": f"2020-01-{rng.randrange(1, 28):02d}"}
        rows.append(row | {"score": rng.randrange(3)})
    return rows


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def state(chain: list[Path]) -> tuple[dict, dict, dict]:
    """Applies snapshots one after the other: kept rows, dropped rows and ledger rows by id."""
    kept: dict[str, dict] = {}
    dropped: dict[str, dict] = {}
    ledger: dict[str, dict] = {}
    for path in chain:
        rows = {
            kind: [row for batch in Dataset(path).batches(kind) for row in batch.to_pylist()]
            for kind in ("retractions", "revivals", "redropped", "amendments")
        }
        gone = {row["id"] for row in rows["retractions"] if row["dropped_by"]}
        back = {row["id"] for row in rows["revivals"]}
        rewritten = {row["id"]: row for row in rows["retractions"] if not row["dropped_by"]}
        assert not gone & back
        assert rewritten.keys() <= back
        for i, row in rewritten.items():
            assert row["text"] == kept[i]["text"]
        for row in rows["retractions"]:
            assert row["id"] in kept
            del kept[row["id"]]
        for row in rows["revivals"]:
            assert row["id"] not in kept
            if row["id"] not in rewritten:
                del dropped[row["id"]]
            else:
                assert row["text"] != rewritten[row["id"]]["text"]
            kept[row["id"]] = row
        for row in rows["redropped"]:
            assert any(dropped[row["id"]][name] != row[name] for name in ("dropped_by", "text"))
        for row in rows["amendments"]:
            assert ledger[row["id"]] != row
        for kind, into in (("data", kept), ("dropped", dropped), ("ledger", ledger)):
            new = [row for batch in Dataset(path).batches(kind) for row in batch.to_pylist()]
            assert not {row["id"] for row in new} & set(into)
            into |= {row["id"]: row for row in new}
        dropped |= {row["id"]: row for row in rows["retractions"] if row["id"] in gone}
        dropped |= {row["id"]: row for row in rows["redropped"]}
        ledger |= {row["id"]: row for row in rows["amendments"]}
    return kept, dropped, ledger


def snapshots(
    folder: Path, parts: list[list[dict]], keep: tuple[Order, ...], make: Make = recipe
) -> list[Path]:
    chain = []
    for number, rows in enumerate(parts):
        write(folder / f"s{number}.jsonl", rows)
        out = folder / f"out{number}"
        source = Source(f"s{number}", str(folder / f"s{number}.jsonl"))
        against = Settings(workers=1, memory=2 << 30, against=str(folder / "index"))
        curate(make(keep), [source], out, against)
        chain.append(out)
    return chain


@pytest.mark.parametrize(("make", "rows_of"), [(recipe, documents), (span_recipe, pages)])
@pytest.mark.parametrize("policy", POLICIES)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 39), min_size=1, max_size=3))
@settings(max_examples=6)
def test_snapshots_add_up_to_one_run_for_every_policy_and_split(make, rows_of, policy, seed, cuts):
    rows = rows_of(random.Random(seed), 40)
    bounds = sorted({0, *cuts, 40})
    parts = [rows[a:b] for a, b in pairwise(bounds)]
    keep = POLICIES[policy]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chain = snapshots(folder, parts, keep, make)
        sources = [
            Source(f"s{number}", str(folder / f"s{number}.jsonl")) for number in range(len(parts))
        ]
        batch = curate(make(keep), sources, folder / "batch", SETTINGS)
        assert state(chain) == state([folder / "batch"])
        against = Dataset(chain[-1]).manifest["against"]
        assert against["total_kept"] == batch["kept"]
        assert against["total_documents_in"] == batch["documents_in"] == 40
        compact(chain, folder / "from-chain")
        compact([folder / "batch"], folder / "from-batch")
        assert digest(folder / "from-chain") == digest(folder / "from-batch")
        assert state([folder / "from-chain"]) == state([folder / "batch"])


def test_three_copies_of_an_indexed_document_all_go(tmp_path):
    """datatrove's index mode drops the first of them and keeps the others."""
    text = " ".join(f"w{i}" for i in range(100))
    near = [{"text": text + end} for end in (" a", " b", " c")]
    old = [{"text": text}, {"text": "another one " + " ".join(f"v{i}" for i in range(50))}]
    keep = Recipe("copies", (JsonlReader(),), (FuzzyDedup(keep=(Oldest(),)),))
    outs = []
    for number, rows in enumerate((old, near)):
        dated = [row | {"date": f"202{number}-01-01"} for row in rows]
        write(tmp_path / f"s{number}.jsonl", dated)
        outs.append(tmp_path / f"out{number}")
        source = Source(f"s{number}", str(tmp_path / f"s{number}.jsonl"))
        curate(keep, [source], outs[-1], Settings(workers=1, against=str(tmp_path / "index")))
    manifest = Dataset(outs[1]).manifest
    assert (manifest["kept"], manifest["dropped"]) == (0, 3)
    assert manifest["against"]["retractions"] == manifest["against"]["revivals"] == 0
    kept = pq.read_table(outs[0] / "data")
    first = kept.column("id")[kept.column("text").to_pylist().index(text)].as_py()
    ledger = Dataset(outs[1]).table("ledger").to_pylist()
    assert {row["matched_id"] for row in ledger} == {first}
    (amended,) = Dataset(outs[1]).table("amendments").to_pylist()
    assert amended["near_duplicate_cluster_size"] == 4


def test_a_better_copy_retracts_and_its_rival_revives(tmp_path):
    def words(start: int, stop: int) -> str:
        return " ".join(f"w{i}" for i in range(start, stop))

    # b is like a and like c, a and c are not alike; the longest stays
    a, b, c = words(0, 100), words(9, 108), words(18, 116)
    longer = words(-12, 100)
    outs = snapshots(tmp_path, [[{"text": t} for t in (a, b, c)], [{"text": longer}]], (Longest(),))
    first, second = (Dataset(out).manifest for out in outs)
    assert first["kept"] == 2
    against = second["against"]
    assert against["retractions"] == 1
    assert against["total_kept"] == second["kept"] + 2 - 1 + against["revivals"]


def test_the_same_snapshot_twice_and_changed_files_are_refused(tmp_path):
    rows = documents(random.Random(1), 10)
    (out,) = snapshots(tmp_path, [rows], ())
    source = Source("s0", str(tmp_path / "s0.jsonl"))
    against = Settings(workers=1, against=str(tmp_path / "index"))
    assert curate(recipe(()), [source], out, against) == Dataset(out).manifest
    with pytest.raises(ValueError, match="every file of the sources is in the index already"):
        curate(recipe(()), [source], tmp_path / "again", against)
    with pytest.raises(
        ValueError, match=r"is an index of recipe snapshots .* this one is snapshots"
    ):
        curate(recipe((Longest(),)), [source], tmp_path / "other", against)
    write(tmp_path / "s0.jsonl", rows[:5])
    with pytest.raises(ValueError, match="is in the index and has changed since"):
        curate(recipe(()), [source], tmp_path / "changed", against)
    with pytest.raises(ValueError, match="exists and is no index"):
        curate(recipe(()), [source], tmp_path / "x", Settings(workers=1, against=str(out)))
    alone = Recipe("alone", (JsonlReader(),), (Cut(),))
    with pytest.raises(ValueError, match="run it without --against"):
        curate(alone, [source], tmp_path / "y", against)


def test_compaction_wants_the_whole_chain_in_order(tmp_path):
    rows = documents(random.Random(2), 20)
    chain = snapshots(tmp_path, [rows[:10], rows[10:]], ())
    for wrong in (chain[1:], chain[::-1]):
        with pytest.raises(ValueError, match="Give all snapshots of one index, in the order"):
            compact(wrong, tmp_path / "compacted")


RECIPES = "tests/pipelines/test_index.py"


def longest() -> Recipe:
    return recipe((Longest(),))


STAGES = (
    *("map (no further steps)", "group (ExactDedup)", "map (Cut)", "link (FuzzyDedup)"),
    *("gather sets (FuzzyDedup)", "compare (FuzzyDedup)", "carry over (FuzzyDedup)"),
    *("write (no further steps)", "compare earlier snapshots"),
)


def test_kill_at_every_stage_of_a_run_against_an_index_gives_the_same_bytes(tmp_path):
    rng = random.Random(5)
    rows = [documents(rng, 3_000, range(0, 30_000, 3)) for _ in range(2)]
    chain = snapshots(tmp_path, rows[:1], (Longest(),))
    shutil.copytree(tmp_path / "index", tmp_path / "pristine")
    write(tmp_path / "s1.jsonl", rows[1])
    command = [sys.executable, "-m", "flows.cli", "curate", f"{RECIPES}:longest", "--workers", "2"]
    command += ["--source", f"s1={tmp_path / 's1.jsonl'}", "--against", str(tmp_path / "index")]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], cwd=ROOT, check=True)
    wanted, index = digest(tmp_path / "whole"), digest(tmp_path / "index")
    assert Dataset(tmp_path / "whole").manifest["against"]["amendments"] > 0
    shutil.rmtree(tmp_path / "index")
    shutil.copytree(tmp_path / "pristine", tmp_path / "index")
    command += ["--out", str(tmp_path / "out")]
    kill_at_stages(command, STAGES)
    subprocess.run(command, cwd=ROOT, check=True)
    assert digest(tmp_path / "out") == wanted
    assert digest(tmp_path / "index") == index
    assert state([*chain, tmp_path / "out"]) == state([*chain, tmp_path / "whole"])


def test_command_line_says_what_changes_of_earlier_documents(tmp_path):
    rows = documents(random.Random(3), 30)
    command = [sys.executable, "-m", "flows.cli", "curate", f"{RECIPES}:longest", "--workers", "1"]
    for number, part in enumerate((rows[:15], rows[15:])):
        write(tmp_path / f"s{number}.jsonl", part)
        more = [
            "--source",
            str(tmp_path / f"s{number}.jsonl"),
            "--out",
            str(tmp_path / str(number)),
        ]
        found = subprocess.run(
            [*command, *more, "--against", str(tmp_path / "index")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    against = Dataset(tmp_path / "1").manifest["against"]
    assert f"earlier documents: {against['retractions']} retractions" in found.stdout
    assert f"kept of all snapshots: {against['total_kept']} of 30" in found.stdout
    out = ["--out", str(tmp_path / "all"), "--json"]
    compacted = subprocess.run(
        [
            sys.executable,
            "-m",
            "flows.cli",
            "compact",
            str(tmp_path / "0"),
            str(tmp_path / "1"),
            *out,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(compacted.stdout)["kept"] == against["total_kept"]
