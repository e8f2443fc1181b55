"""Near-duplicate removal beside datatrove's MinHash: MB of text per CPU second, and who is right.

Both read the same Parquet text, sign, find pairs and write what is left; ours also verifies every
pair and writes a ledger. datatrove runs on a prefix, since it is slow; gristmill on that prefix and
on all of it. Recall and false removals are against the walk on the exact Jaccard graph of
../shared/data/licences, all pairs computed.

    python -m benchmarks.dedup [--megabytes 250] [--prefix 30]
"""

import argparse
import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from benchmarks.curation import beside_peer
from benchmarks.machine import ROOT, about, write_result

LICENCES = ROOT.parent / "shared" / "data" / "licences" / "licences.jsonl.gz"


def brute_force(texts: list[str], ids: list[str]) -> set[str]:
    """Returns the ids that the walk drops at 0.8, by id, with every pair's exact similarity."""
    numbers: dict[tuple[str, ...], int] = {}
    rows = []
    for text in texts:
        words = re.findall(r"[^\W_]+", text.lower())
        shingles = {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))} - {()}
        rows.append([numbers.setdefault(shingle, len(numbers)) for shingle in shingles])
    size = np.array([len(row) for row in rows])
    indices = np.concatenate([np.array(row, np.int64) for row in rows])
    incidence = csr_array((np.ones(len(indices), np.int64), indices, np.append(0, size.cumsum())))
    common = (incidence @ incidence.T).toarray()
    alike = common * 5 >= 4 * (size[:, None] + size[None, :] - common)
    kept: list[int] = []
    dropped = set()
    for i in sorted(range(len(texts)), key=lambda i: ids[i]):
        if size[i] and alike[i, kept].any():
            dropped.add(ids[i])
        else:
            kept.append(i)
    return dropped


def licences(folder: Path) -> dict[str, Any]:
    """Runs both on the licences; returns what each removed beside brute force."""
    from pipelines.curate import curate
    from pipelines.dedup.fuzzy import FuzzyDedup
    from pipelines.readers.parquet import ParquetReader
    from pipelines.recipe import Recipe, Source

    with gzip.open(LICENCES, "rt") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    source = folder / "licences" / "corpus.parquet"
    source.parent.mkdir()
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows), source)
    out = folder / "licences-out"
    recipe = Recipe("licences", (ParquetReader(),), (FuzzyDedup(),))
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
    wanted = brute_force(texts, ids)
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
    parser.add_argument("--megabytes", type=float, default=250)
    parser.add_argument("--prefix", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        result = {"what": "near-duplicates: read, sign, find pairs, (ours: verify,) write"}
        result |= beside_peer(folder, "dedup", options.megabytes, options.prefix)
        result["asked_mb_per_cpu_s"] = 40
        result["licences_at_0.8"] = licences(folder) if LICENCES.exists() else None
    result["machine"] = about(["gristmill", "datatrove", "numba", "pyarrow", "spacy"])
    write_result("dedup", result)


if __name__ == "__main__":
    main()
