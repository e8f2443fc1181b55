"""Semantic duplicates, against a walk in plain Python over float64 products."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.compact import compact
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.clusters import assign, sampling_order, train
from pipelines.dedup.keep import Lowest
from pipelines.dedup.semantic import SemanticDedup
from pipelines.dedup.vector_walk import walk_vectors
from pipelines.document import id_words
from pipelines.engines.job import Job
from pipelines.engines.stages import map_unit
from pipelines.engines.vector_stages import (
    assign_unit,
    pack_clusters,
    train_centroids,
    walk_clusters,
)
from pipelines.layout import make_layout
from pipelines.plan import make_plan
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe, Source
from tests.laws.harness import ROOT, digest

WIDTH = 8


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales as `normalise` does: lengths in float64, value by value, rounded to float32."""
    wide = np.asarray(vectors, np.float32).astype(np.float64)
    squares = np.zeros(len(wide))
    for column in wide.T:
        squares += column * column
    return (wide / np.sqrt(squares)[:, None]).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        total += x * y
    return total


def walked(vectors: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Returns (anchor, millionths) of each, -1 and 0 for a kept one, one pair after the other."""
    kept: list[int] = []
    found = []
    for i in range(len(vectors)):
        likes = [(int(np.floor(cosine(vectors[i], vectors[j]) * 1e6 + 0.5)), -j) for j in kept]
        best, anchor = max(likes, default=(-(10**7), 0))
        if best >= least:
            found.append((-anchor, min(best, 10**6)))
        else:
            found.append((-1, 0))
            kept.append(i)
    return found


def bunched(rng: np.random.Generator, number: int, width: int = WIDTH) -> np.ndarray:
    """Vectors around a few directions, some of them equal, some scaled copies."""
    centres = rng.normal(size=(3, width))
    vectors = centres[rng.integers(0, 3, number)] + rng.normal(size=(number, width)) * 0.3
    for i in range(1, number):
        if rng.random() < 0.2:
            vectors[i] = vectors[rng.integers(0, i)] * rng.choice([1.0, 2.0, 1e-3])
    return vectors.astype(np.float32)


@given(seed=st.integers(0, 10**6), number=st.integers(0, 60), least=st.integers(500_000, 10**6))
@settings(max_examples=60)
@pytest.mark.parametrize(("block", "tile"), [(512, 4096), (7, 3), (1, 1)])
def test_walk_in_blocks_is_the_walk_one_by_one(block, tile, seed, number, least):
    vectors = unit(bunched(np.random.default_rng(seed), number)) if number else np.zeros((0, WIDTH))
    vectors = vectors.astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.dedup.vector_walk.BLOCK", block)
        patch.setattr("pipelines.dedup.vector_walk.TILE", tile)
        found = walk_vectors(vectors.copy(), least)
    pairs = list(zip(found.anchors.tolist(), found.millionths.tolist(), strict=True))
    assert pairs == walked(vectors, least)


@given(seed=st.integers(0, 10**6), number=st.integers(1, 80), k=st.integers(1, 12))
@settings(max_examples=60)
def test_vectors_go_to_the_nearest_centroid_and_ties_to_the_first(seed, number, k):
    rng = np.random.default_rng(seed)
    centroids = unit(rng.normal(size=(k, WIDTH)))
    centroids[rng.integers(0, k)] = centroids[0]  # equally near
    vectors = unit(bunched(rng, number))
    products = [[cosine(v, c) for c in centroids] for v in vectors]
    assert assign(vectors, centroids).tolist() == [row.index(max(row)) for row in products]


def test_training_finds_planted_clusters_and_leaves_empty_centroids_where_they_are():
    rng = np.random.default_rng(1)
    directions = np.eye(4, WIDTH)
    sample = unit(directions[np.arange(400) % 4] + rng.normal(size=(400, WIDTH)) * 0.05)
    centroids = train(sample, 4, 5)
    assert (centroids @ directions.T).max(axis=1) == pytest.approx(1, abs=0.01)
    twins = np.concatenate([sample[:1], sample[:1], sample[1:4]])
    assert (train(twins, 2, 5)[1] == sample[0]).all()
    opposite = unit(np.array([[1, 0], [-1, 0]]))
    assert (train(opposite, 1, 3)[0] == opposite[0]).all()  # the members cancel out


def write(path: Path, vectors: Sequence, rank: Sequence[int], width: int = WIDTH) -> None:
    column = pa.array(list(vectors), pa.list_(pa.float32(), width))
    texts = [f"text {i} of {path.stem}" for i in range(len(vectors))]
    pq.write_table(pa.table({"text": texts, "embedding": column, "n": list(rank)}), path)


def recipe(step: SemanticDedup | None = None) -> Recipe:
    reader = ParquetReader(columns=("embedding", "n"))
    return Recipe("semantic", (reader,), (step or SemanticDedup(keep=(Lowest("n"),)),))


def run(folder: Path, files: list[Path], step: SemanticDedup, **options) -> list[dict]:
    """Returns the ledger of a run over the files in the order of their rows."""
    out = folder / "out"
    sources = [Source(file.stem, str(file)) for file in files]
    curate(recipe(step), sources, out, Settings(**{"workers": 1, **options}))
    rows = pq.read_table(sorted((out / "ledger").glob("*.parquet"))).to_pylist()
    return sorted(rows, key=lambda row: (row["source"], row["origin"]["offset"]))


@given(seed=st.integers(0, 10**6), least=st.sampled_from([0.6, 0.8, 0.95]), cut=st.integers(1, 39))
@settings(max_examples=8)
def test_one_cluster_agrees_with_a_walk_over_all_pairs(seed, least, cut):
    rng = np.random.default_rng(seed)
    vectors, rank = bunched(rng, 40), rng.integers(0, 5, 40)
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / "a.parquet", Path(name) / "b.parquet"]
        write(files[0], vectors[:cut], rank[:cut])
        write(files[1], vectors[cut:], rank[cut:])
        step = SemanticDedup(min_similarity=least, num_clusters=1, keep=(Lowest("n"),))
        rows = run(Path(name), files, step)
    order = sorted(range(40), key=lambda i: (rank[i], rows[i]["id"]))
    wanted = walked(unit(vectors[order]), step.least())
    for place, (anchor, millionths) in zip(order, wanted, strict=True):
        row = rows[place]
        assert row["dropped_by"] == ("semantic_duplicate" if anchor >= 0 else None)
        assert row["matched_id"] == (rows[order[anchor]]["id"] if anchor >= 0 else None)
        assert row["similarity"] == (np.float32(millionths / 1e6) if anchor >= 0 else None)
        head = anchor if anchor >= 0 else order.index(place)
        size = 1 + sum(other == head for other, _ in wanted)
        assert row["semantic_duplicate_cluster_size"] == size


def corpus(folder: Path, number: int, parts: int, width: int = WIDTH) -> list[Path]:
    """Writes files of bunched vectors, one in twenty null; returns their paths."""
    rng = np.random.default_rng(11)
    vectors = list(bunched(rng, number, width))
    for i in range(0, number, 20):
        vectors[i] = None
    rank = rng.integers(0, 50, number)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"part{part}.parquet" for part in range(parts)]
    bounds = np.linspace(0, number, parts + 1).astype(int)
    for file, start, stop in zip(files, bounds[:-1], bounds[1:], strict=True):
        write(file, vectors[start:stop], rank[start:stop], width)
    return files


STEP = SemanticDedup(min_similarity=0.9, num_clusters=7, seed=5, keep=(Lowest("n"),))


def test_clusters_are_walked_one_by_one(tmp_path):
    files = corpus(tmp_path / "in", 600, 3)
    rows = run(tmp_path, files, STEP)
    table = pa.concat_tables(pq.read_table(file) for file in files)
    given_vectors, rank = table["embedding"].to_pylist(), table["n"].to_pylist()
    usable = [i for i, vector in enumerate(given_vectors) if vector is not None]
    vectors = dict(zip(usable, unit(np.array([given_vectors[i] for i in usable])), strict=True))
    words = id_words(pa.array([row["id"] for row in rows]))
    order = sampling_order(words, STEP.seed)
    sample = np.array([vectors[i] for i in sorted(usable, key=lambda i: order[i])])
    centroids = train(sample, 7, STEP.num_rounds)
    numbers = assign(np.array([vectors[i] for i in usable]), centroids)
    assert len(set(numbers.tolist())) > 3
    found = {row["id"]: (row["matched_id"], row["similarity"]) for row in rows}
    for number in range(7):
        mine = [i for i, n in zip(usable, numbers, strict=True) if n == number]
        mine.sort(key=lambda i: (rank[i], rows[i]["id"]))
        walk = walked(np.array([vectors[i] for i in mine]), STEP.least()) if mine else []
        for i, (anchor, millionths) in zip(mine, walk, strict=True):
            match = (rows[mine[anchor]]["id"], np.float32(millionths / 1e6))
            assert found.pop(rows[i]["id"]) == (match if anchor >= 0 else (None, None))
    assert set(found.values()) == {(None, None)}  # those without a vector


@pytest.mark.parametrize("options", [{"workers": 3}, {"workers": 2, "memory": 1 << 30}])
def test_workers_and_memory_do_not_change_a_byte(tmp_path, options):
    files = corpus(tmp_path / "in", 600, 4)
    run(tmp_path / "one", files, STEP)
    run(tmp_path / "other", files, STEP, **options)
    assert digest(tmp_path / "one" / "out") == digest(tmp_path / "other" / "out")


def staged(folder: Path, files: list[Path], step: SemanticDedup, memory: int) -> list[bytes]:
    """Runs the stages in this process; returns the bytes of the verdict files."""
    made = recipe(step)
    plan = make_plan(made.readers, [Source(file.stem, str(file)) for file in files])
    job = Job(made, plan, make_layout(made, plan), folder / "out", folder / "work", "all", 1.0)
    for unit_number in range(len(plan.units)):
        map_unit(job, 0, unit_number)
    train_centroids(job, 0, max(memory, 40_000))
    for unit_number in range(len(plan.units)):
        assign_unit(job, 0, unit_number)
    packages = pack_clusters(job, 0)
    for package in range(packages):
        walk_clusters(job, 0, package, memory)
    return [path.read_bytes() for path in sorted(job.verdicts(0).glob("*.arrow"))]


def test_samples_and_clusters_that_do_not_fit_are_read_from_files(tmp_path, monkeypatch):
    files = corpus(tmp_path / "in", 900, 3, width=64)
    in_memory = staged(tmp_path / "a", files, STEP, 1 << 30)
    made = []
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **k: made.append(k) or open_file(**k))
    assert staged(tmp_path / "b", files, STEP, 900 * 200 * 2) == in_memory
    assert len(made) > 1
    with pytest.raises(RuntimeError, match=r"a cluster of more than .* Give more --memory"):
        staged(tmp_path / "c", files, STEP, 10_000)


open_file = tempfile.TemporaryFile


def test_packages_hold_neighbouring_clusters_and_change_nothing(tmp_path, monkeypatch):
    files = corpus(tmp_path / "in", 600, 2)
    (whole,) = staged(tmp_path / "a", files, STEP, 1 << 30)
    monkeypatch.setattr("pipelines.engines.vector_stages.PACKAGE_BYTES", 1000)
    parts = staged(tmp_path / "b", files, STEP, 1 << 30)
    assert len(parts) > 2
    tables = [pa.ipc.open_file(pa.py_buffer(part)).read_all() for part in parts]
    joined = pa.concat_tables(tables).sort_by([("unit", "ascending"), ("row", "ascending")])
    assert joined.to_pylist() == pa.ipc.open_file(pa.py_buffer(whole)).read_all().to_pylist()


def test_documents_without_a_usable_vector_are_like_nothing(tmp_path):
    odd = [None, [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [1.0, None]]
    write(tmp_path / "a.parquet", [*odd, *odd, [1.0, 0.0], [5.0, 0.0]], range(12), width=2)
    rows = run(tmp_path, [tmp_path / "a.parquet"], SemanticDedup(num_clusters=1))
    assert [row["dropped_by"] for row in rows[:10]] == [None] * 10
    assert sorted(str(row["dropped_by"]) for row in rows[10:]) == ["None", "semantic_duplicate"]
    assert [row["semantic_duplicate_cluster_size"] for row in rows] == [1] * 10 + [2, 2]


def test_a_column_without_any_vector_stops_the_run(tmp_path):
    write(tmp_path / "a.parquet", [None, [0.0] * WIDTH], [0, 1])
    with pytest.raises(RuntimeError, match="none of 2 documents has a usable vector"):
        run(tmp_path, [tmp_path / "a.parquet"], SemanticDedup())


def test_a_column_of_another_type_is_refused_before_data_moves(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a b"], "embedding": [[1.0]], "n": [1]}), path)
    with pytest.raises(ValueError, match=r"'embedding' is list<.*wanted a fixed-size"):
        run(tmp_path, [path], SemanticDedup())
    write(path, [[1.0, 0.0]], [0], width=2)
    write(tmp_path / "b.parquet", [[1.0] * 3], [0], width=3)
    with pytest.raises(ValueError, match=r"column 'embedding' is .*\[3\] in source b and .*\[2\]"):
        run(tmp_path, [path, tmp_path / "b.parquet"], SemanticDedup())


def test_another_engine_and_too_little_memory_for_the_centroids_are_refused(tmp_path):
    files = corpus(tmp_path / "in", 40, 1)
    with pytest.raises(ValueError, match="SemanticDedup does not run on the spark engine"):
        run(tmp_path, files, STEP, engine="spark")
    staged(tmp_path / "a", files, STEP, 1 << 30)
    made = recipe(STEP)
    plan = make_plan(made.readers, [Source(file.stem, str(file)) for file in files])
    job = Job(made, plan, make_layout(made, plan), tmp_path / "out", tmp_path / "b", "all", 1.0)
    map_unit(job, 0, 0)
    with pytest.raises(RuntimeError, match=r"7 centroids take .* fewer num_clusters"):
        train_centroids(job, 0, 100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_similarity": 0},
        {"min_similarity": 1.01},
        {"min_similarity": 0.12345678},
        {"num_clusters": 0},
        {"num_rounds": 0},
        {"seed": -1},
    ],
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"SemanticDedup: {next(iter(wrong))} is .*wanted"):
        SemanticDedup(**wrong)


def test_the_number_of_clusters_follows_the_number_of_documents():
    step = SemanticDedup()
    found = [step.clustering(number).num_clusters for number in (0, 1, 16_384, 16_385, 10**6)]
    assert found == [0, 1, 1, 2, 62]
    assert SemanticDedup(num_clusters=7).clustering(3).num_clusters == 3


def test_snapshots_against_an_index_add_up_to_one_run(tmp_path):
    files = corpus(tmp_path / "in", 300, 3)
    chain = []
    for number, file in enumerate(files):
        chain.append(tmp_path / f"out{number}")
        options = Settings(workers=1, against=str(tmp_path / "index"))
        curate(recipe(STEP), [Source(file.stem, str(file))], chain[-1], options)
    run(tmp_path, files, STEP)
    assert Dataset(chain[-1]).manifest["against"]["amendments"] > 0
    compact(chain, tmp_path / "from-chain")
    compact([tmp_path / "out"], tmp_path / "from-batch")
    assert digest(tmp_path / "from-chain") == digest(tmp_path / "from-batch")


def killed() -> Recipe:
    """What the next test runs as a command."""
    return recipe(SemanticDedup(min_similarity=0.99, num_clusters=200, keep=(Lowest("n"),)))


@pytest.mark.slow
def test_kill_in_every_stage_gives_the_same_bytes(tmp_path):
    files = corpus(tmp_path / "in", 40_000, 4, width=64)
    command = [sys.executable, "-m", "flows.cli", "curate"]
    command += ["tests/pipelines/dedup/test_semantic.py:killed", "--workers", "2"]
    command += [part for file in files for part in ("--source", f"{file.stem}={file}")]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], cwd=ROOT, check=True)
    rng, kills = random.Random(3), 0
    out = ["--out", str(tmp_path / "out")]
    for stage in ("train", "train", "assign", "assign", "compare", "compare", "write"):
        process = subprocess.Popen(
            [*command, *out], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(stage.encode()) and b"started" in line:
                break
        time.sleep(rng.random() * 0.2)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
    subprocess.run([*command, *out], cwd=ROOT, check=True)
    assert kills > 3
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
