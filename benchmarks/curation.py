"""`gristmill curate` beside datatrove's LocalPipelineExecutor: MB of text per CPU second.

Both read the same Parquet text, identify the language, ask Gopher's quality and repetition rules,
remove exact duplicates and write what is left. datatrove runs on a prefix of the corpus, since it
is slow; gristmill on that prefix and, five times, on all of it. CPU seconds of the whole tree of
processes.

    python -m benchmarks.curation [--megabytes 250] [--prefix 30]
"""

import argparse
import hashlib
import json
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import about, run_counted, write_result

ENDINGS = (".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".c", ".pyx", ".js", ".html")
ROW_GROUP = 2_000
RUNS = 5
"""Of ours on all of the corpus; the one of the median CPU time counts: machines are shared."""


def texts(megabytes: float) -> Iterator[tuple[str, str]]:
    """Yields (path, text) of this machine's text files, up to a number of megabytes."""
    left = megabytes * 1e6
    roots = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"], "/usr/share"]
    files = []
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            files += [
                os.path.join(folder, name) for name in sorted(names) if name.endswith(ENDINGS)
            ]
    # spread the kinds evenly, so that a prefix looks like the whole
    files.sort(key=hash_of)
    for path in files:
        if os.path.islink(path) or not 200 <= os.path.getsize(path) <= 500_000:
            continue
        try:
            text = Path(path).read_text("utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        yield path, text
        left -= len(text.encode())
        if left <= 0:
            return


def hash_of(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")


def write_corpus(folder: Path, megabytes: float) -> int:
    """Writes corpus.parquet and returns its text bytes."""
    schema, total, rows = pa.schema([("id", pa.string()), ("text", pa.string())]), 0, []
    folder.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(folder / "corpus.parquet", schema, compression="zstd") as writer:
        for path, text in texts(megabytes):
            rows.append({"id": path, "text": text})
            total += len(text.encode())
            if len(rows) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))
    return total


def gristmill(recipe: str, corpus: Path, out: Path) -> dict:
    """Runs the command on a corpus with one worker."""
    cpu, wall, stdout = run_counted(
        [
            *(sys.executable, "-m", "flows.cli", "curate", f"benchmarks/{recipe}_recipe.py:recipe"),
            *("--source", f"corpus={corpus}", "--out", str(out), "--workers", "1", "--json"),
        ]
    )
    manifest = json.loads(stdout)
    return {
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "text_mb": round(manifest["bytes_in"] / 1e6, 1),
        "mb_per_cpu_s": round(manifest["bytes_in"] / 1e6 / cpu, 2),
        "documents_in": manifest["documents_in"],
        "kept": manifest["kept"],
        "dropped": {rule["name"]: rule["dropped"] for rule in manifest["rules"] if rule["dropped"]},
    }


def datatrove(recipe: str, corpus: Path, out: Path) -> dict:
    """Runs the peer on a corpus with one worker."""
    cpu, wall, stdout = run_counted(
        [sys.executable, "-m", f"benchmarks.{recipe}_datatrove", str(corpus), str(out)]
    )
    result = json.loads(stdout.splitlines()[-1])
    return {
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "mb_per_cpu_s": round(result["text_bytes"] / 1e6 / cpu, 3),
        **result,
    }


def beside_peer(folder: Path, recipe: str, megabytes: float, prefix_megabytes: float) -> dict:
    """Runs `recipe` on a corpus and on its prefix, and the peer on the prefix."""
    whole = write_corpus(folder / "whole", megabytes)
    prefix = write_corpus(folder / "prefix", prefix_megabytes)
    gristmill(recipe, folder / "prefix", folder / "warm")  # compiled and cached, as after set-up
    ours_prefix = gristmill(recipe, folder / "prefix", folder / "ours-prefix")
    runs = [gristmill(recipe, folder / "whole", folder / f"ours-{n}") for n in range(RUNS)]
    runs.sort(key=lambda run: run["cpu_s"])
    ours = runs[RUNS // 2] | {"cpu_s_of_runs": [run["cpu_s"] for run in runs]}
    peer = datatrove(recipe, folder / "prefix", folder / "peer")
    return {
        "whole_text_mb": round(whole / 1e6, 1),
        "prefix_text_mb": round(prefix / 1e6, 1),
        "gristmill_whole": ours,
        "gristmill_prefix": ours_prefix,
        "datatrove_prefix": peer,
        "ratio_prefix": round(ours_prefix["mb_per_cpu_s"] / peer["mb_per_cpu_s"], 1),
        "ratio_whole": round(ours["mb_per_cpu_s"] / peer["mb_per_cpu_s"], 1),
    }


def main() -> None:
    """Writes benchmarks/results/curation.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=250)
    parser.add_argument("--prefix", type=float, default=30)
    options = parser.parse_args()
    result = {"what": "curate: language id, Gopher quality, Gopher repetition, exact dedup, write"}
    with tempfile.TemporaryDirectory() as temporary:
        result |= beside_peer(Path(temporary), "curation", options.megabytes, options.prefix)
    result["asked_ratio"] = 20
    result["machine"] = about(["gristmill", "datatrove", "numba", "pyarrow", "fasttext", "spacy"])
    write_result("curation", result)


if __name__ == "__main__":
    main()
