"""Near-duplicate removal beside three peers: MB of text per CPU second, and who is right.

All read the same Parquet text, sign, find pairs and write what is left; ours also verifies every
pair and writes a ledger. The peers run on a prefix, since they are slow; gristmill on that prefix
and, five times, on all of it. What one removes and another does not is explained by the exact
Jaccard index of all pairs of the prefix, on our shingles. Recall and false removals are against the
walk on the exact Jaccard graph of ../shared/data/licences. text-dedup and rensa want an environment
of their own, with Python 3.12 (`pip install text-dedup==0.4.1 rensa==0.5.0`); its Python is
`--peers`.

    python -m benchmarks.dedup --peers PYTHON [--megabytes 500] [--prefix 30]
"""

import argparse
import gzip
import json
import re
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from benchmarks.curation import beside_peer
from benchmarks.machine import ROOT, about, run_counted, write_result
from pipelines.dataset import Dataset
from pipelines.dedup.minhash import Shingles
from pipelines.document import document_ids

LICENCES = ROOT.parent / "shared" / "data" / "licences" / "licences.jsonl.gz"
THRESHOLD = 0.8
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


def brute_force(texts: list[str], ids: list[str], tenths: int) -> set[str]:
    """Returns the ids that the walk drops, by id, with every pair's exact similarity."""
    numbers: dict[tuple[str, ...], int] = {}
    rows = []
    for text in texts:
        words = WORD.findall(text.lower())
        shingles = {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))} - {()}
        rows.append([numbers.setdefault(shingle, len(numbers)) for shingle in shingles])
    size = np.array([len(row) for row in rows])
    indices = np.concatenate([np.array(row, np.int64) for row in rows])
    incidence = csr_array((np.ones(len(indices), np.int64), indices, np.append(0, size.cumsum())))
    common = (incidence @ incidence.T).toarray()
    alike = common * 10 >= tenths * (size[:, None] + size[None, :] - common)
    kept: list[int] = []
    dropped = set()
    for i in sorted(range(len(texts)), key=lambda i: ids[i]):
        if size[i] and alike[i, kept].any():
            dropped.add(ids[i])
        else:
            kept.append(i)
    return dropped


def peer(python: str, script: str, corpus: Path, out: Path) -> dict[str, Any]:
    """Runs a peer on a corpus; it prints counts and leaves the ids that it keeps in kept.json."""
    cpu, wall, stdout = run_counted([python, f"benchmarks/{script}.py", str(corpus), str(out)])
    result = json.loads(stdout.splitlines()[-1])
    rate = round(result["text_bytes"] / 1e6 / cpu, 3)
    return {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "mb_per_cpu_s": rate, **result}


def exact_jaccard(texts: Sequence[str]) -> csr_array:
    """Returns the Jaccard index of all pairs that share a shingle of ours, (n, n)."""
    offsets, values = Shingles().sets(pa.array(texts))
    _, columns = np.unique(values, return_inverse=True)
    incidence = csr_array((np.ones(len(columns), np.int32), columns, offsets))
    common = (incidence @ incidence.T).tocoo()
    size = np.diff(offsets)
    union = size[common.row] + size[common.col] - common.data
    return csr_array((common.data / union, (common.row, common.col)), common.shape)


def explained(ours: np.ndarray, theirs: np.ndarray, similarity: csr_array) -> dict[str, Any]:
    """Says why two systems keep other documents.

    Args:
        ours: bool (n,), whether we keep each document.
        theirs: bool (n,), whether the peer does.
        similarity: (n, n), the exact index.
    """

    def best(chosen: np.ndarray, kept: np.ndarray) -> np.ndarray:
        rows = similarity[chosen].multiply(kept[None, :]).toarray()
        rows[np.arange(len(chosen)), chosen] = 0  # itself
        return rows.max(axis=1, initial=0)

    only_they_drop = np.flatnonzero(ours & ~theirs)
    only_we_drop = np.flatnonzero(~ours & theirs)
    unlike = best(only_they_drop, theirs)
    false = unlike[unlike < THRESHOLD]
    left = best(only_we_drop, theirs)
    return {
        "both_drop": int((~ours & ~theirs).sum()),
        "only_the_peer_drops": len(only_they_drop),
        "of_these_unlike_all_that_it_keeps": len(false),
        "median_similarity_of_these": round(statistics.median(false), 3) if len(false) else None,
        "of_these_we_keep_another_copy": int((unlike >= THRESHOLD).sum()),
        "only_we_drop": len(only_we_drop),
        "of_these_the_peer_left_a_duplicate": int((left >= THRESHOLD).sum()),
        "of_these_the_peer_keeps_another_copy": int((left < THRESHOLD).sum()),
    }


def compare_removals(folder: Path, peers: Sequence[str]) -> dict[str, Any]:
    """Compares document by document what each peer keeps of the prefix with what we keep."""
    corpus = pq.read_table(folder / "prefix" / "corpus.parquet")
    n = len(corpus)
    keys = corpus["id"].to_pylist()
    numbers = [str(number) for number in range(n)]
    ids = document_ids("corpus", ["corpus.parquet"] * n, numbers).to_pylist()
    kept = set(Dataset(folder / "ours-prefix").table("data", ["id"])["id"].to_pylist())
    ours = np.array([key in kept for key in ids])
    similarity = exact_jaccard(corpus["text"].to_pylist())
    found = {}
    for name in peers:
        theirs = set(json.loads((folder / name / "kept.json").read_text()))
        found[name] = explained(ours, np.array([key in theirs for key in keys]), similarity)
    return found


def licences(folder: Path, tenths: int) -> dict[str, Any]:
    """Runs both on the licences at a threshold in tenths; returns what each removed."""
    from pipelines.curate import curate
    from pipelines.dedup.fuzzy import FuzzyDedup
    from pipelines.readers.parquet import ParquetReader
    from pipelines.recipe import Recipe, Source

    with gzip.open(LICENCES, "rt") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    source = folder / f"licences-{tenths}" / "corpus.parquet"
    source.parent.mkdir()
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows), source)
    out = folder / f"licences-{tenths}-out"
    recipe = Recipe("licences", (ParquetReader(),), (FuzzyDedup(min_similarity=tenths / 10),))
    curate(recipe, [Source("licences", str(source))], out)
    rows_of = {
        kind: pq.read_table(sorted((out / kind).glob("*.parquet"))).to_pylist()
        for kind in ("data", "dropped")
    }
    dropped = {row["id"] for row in rows_of["dropped"]}
    ids_by_text: dict[str, list[str]] = {}
    for row in (*rows_of["data"], *rows_of["dropped"]):
        ids_by_text.setdefault(row["text"], []).append(row["id"])
    ids = [ids_by_text[text].pop() for text in texts]
    wanted = brute_force(texts, ids, tenths)
    return {
        "documents": len(texts),
        "brute_force_removes": len(wanted),
        "gristmill_removes": len(dropped),
        "recall": round(len(wanted & dropped) / len(wanted), 5),
        "false_removals": len(dropped - wanted),
    }


def main() -> None:
    """Writes benchmarks/results/dedup.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--prefix", type=float, default=30)
    parser.add_argument("--peers", help="a Python with text-dedup and rensa")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        result = {"what": "near-duplicates: read, sign, find pairs, (ours: verify,) write"}
        result |= beside_peer(folder, "dedup", options.megabytes, options.prefix)
        names = ["peer"]
        for name in ("text_dedup", "rensa") if options.peers else ():
            script, out = f"dedup_{name}", folder / name
            result[f"{name}_prefix"] = peer(options.peers, script, folder / "prefix", out)
            names.append(name)
        result["removals_beside_ours"] = compare_removals(folder, names)
        result["removals_beside_ours"]["datatrove"] = result["removals_beside_ours"].pop("peer")
        result["asked_mb_per_cpu_s"] = 40
        for tenths in (8, 7) if LICENCES.exists() else ():
            result[f"licences_at_0.{tenths}"] = licences(folder, tenths)
    result["machine"] = about(["gristmill", "datatrove", "numba", "pyarrow", "spacy"])
    write_result("dedup", result)


if __name__ == "__main__":
    main()
