"""Substring dedup beside one suffix array of the whole text: MB of text per CPU second, memory.

Both read the same Parquet text and cut what repeats 100 bytes that occur before; ours also writes a
ledger and the documents that are left. The peer holds the text, its suffix array and its LCP in
memory, so it runs on a prefix; gristmill on that prefix and on all of it, with 8 GiB and with 1.
That both cut the same bytes of every document is checked. Lines and paragraphs run on all of it.
Memory is the proportional set size of the whole process tree, read from outside.

    python -m benchmarks.substring [--megabytes 500] [--prefix 50]
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.dedup_scale import Watch, documents, write
from benchmarks.machine import about, run_counted, write_result
from pipelines.dataset import Dataset

RECIPES = "benchmarks/substring_recipe.py"


def curate(recipe: str, corpus: Path, text_bytes: int, out: Path, *more: str) -> dict[str, Any]:
    """Runs the command with one worker and returns what it cost and cut."""
    with Watch() as watch:
        cpu, wall, stdout = run_counted(
            [
                *(sys.executable, "-m", "flows.cli", "curate", f"{RECIPES}:{recipe}"),
                *("--source", f"corpus={corpus}", "--out", str(out), "--workers", "1", "--json"),
                *more,
            ]
        )
    manifest = json.loads(stdout)
    return {
        "recipe": recipe,
        "settings": " ".join(more),
        "text_mb": round(text_bytes / 1e6, 1),
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "mb_per_cpu_s": round(text_bytes / 1e6 / cpu, 2),
        "peak_pss_mib": watch.peak >> 20,
        "documents_in": manifest["documents_in"],
        "kept": manifest["kept"],
        "cut": {cut["name"]: cut["bytes"] for cut in manifest["cuts"]},
        "files": manifest["identity"],
    }


def suffix_array(corpus: Path, out: Path) -> dict[str, Any]:
    """Runs the peer."""
    with Watch() as watch:
        cpu, wall, stdout = run_counted(
            [sys.executable, "-m", "benchmarks.substring_suffix_array", str(corpus), str(out)]
        )
    result = json.loads(stdout.splitlines()[-1])
    return {
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "mb_per_cpu_s": round(result["text_bytes"] / 1e6 / cpu, 2),
        "peak_pss_mib": watch.peak >> 20,
        "cut_bytes": result["cut_bytes"],
    }


def same_work(dataset: Path, peer: Path) -> dict[str, int]:
    """Compares the bytes that both cut of each document.

    Raises:
        SystemExit: they differ.
    """
    rows = Dataset(dataset).table("ledger", ["id", "duplicate_substring_bytes"]).to_pylist()
    ours = [row["duplicate_substring_bytes"] for row in sorted(rows, key=lambda row: row["id"])]
    theirs = np.load(peer / "cut.npy").tolist()
    if ours != theirs:
        sys.exit("both cut other bytes")
    return {"documents": len(ours), "documents_cut": sum(map(bool, ours)), "bytes": sum(ours)}


def text_size(corpus: Path) -> int:
    """Returns the bytes of a corpus's texts."""
    return pc.sum(pc.binary_length(pq.read_table(corpus, columns=["text"])["text"])).as_py()


def main() -> None:
    """Writes benchmarks/results/substring.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--prefix", type=float, default=50)
    options = parser.parse_args()
    result: dict[str, Any] = {"what": "substrings of 100 bytes: read, find, cut, write"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prefix = write(folder / "prefix", documents(options.prefix))
        whole = write(folder / "whole", documents(options.megabytes))
        small, large = text_size(prefix), text_size(whole)
        curate("recipe", prefix, small, folder / "warm")  # compiled and cached, as after set-up
        ours = curate("recipe", prefix, small, folder / "prefix-out")
        peer = suffix_array(prefix, folder / "peer")
        result |= {"gristmill_prefix": ours, "suffix_array_prefix": peer}
        result["same_cuts"] = same_work(folder / "prefix-out", folder / "peer")
        result["ratio_prefix"] = round(ours["mb_per_cpu_s"] / peer["mb_per_cpu_s"], 1)
        runs = result["gristmill_whole"] = [
            curate("recipe", whole, large, folder / memory, "--memory", memory)
            for memory in ("8GiB", "1GiB")
        ]
        if len({run.pop("files") for run in runs}) > 1:
            sys.exit("less memory gave other files")
        result["asked_mb_per_cpu_s"] = 3
        for recipe in ("lines", "paragraphs"):
            curate(recipe, prefix, small, folder / f"warm-{recipe}")
            result[recipe] = curate(recipe, whole, large, folder / recipe)
    result["machine"] = about(["gristmill", "numba", "pyarrow", "pydivsufsort"])
    write_result("substring", result)


if __name__ == "__main__":
    main()
