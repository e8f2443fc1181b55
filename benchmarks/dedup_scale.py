"""Near-duplicate removal at 1, 2, 4 and 8 times the input, on templates, and with two workers.

Memory is the proportional set size of the whole process tree, read from outside 20 times a second,
under `--memory 1GiB`; nobody watches where wall times are compared. The text is this machine's text
files; where they do not suffice, the same files with every letter moved on by some places of the
alphabet: unlike the originals, with the same lengths and the same copies among themselves.
Templated pages have 60 words in common and 24 of their own; unlike ones have 84 of their own.

    python -m benchmarks.dedup_scale [--megabytes 250]
"""

import argparse
import json
import math
import random
import string
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.curation import ROW_GROUP, texts
from benchmarks.machine import about, run_counted, write_result

PAGES = 50_000
POLL_S = 0.05
TURNS = 5


def rotated(text: str, places: int) -> str:
    """Moves every ASCII letter on by some places of the alphabet."""
    lower, upper = string.ascii_lowercase, string.ascii_uppercase
    to = lower[places:] + lower[:places] + upper[places:] + upper[:places]
    return text.translate(str.maketrans(lower + upper, to))


def documents(megabytes: float) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of real text, again with moved letters until there is enough."""
    left, places = megabytes * 1e6, 0
    while left > 0:
        for path, text in texts(left / 1e6):
            left -= len(text.encode())
            yield f"{path}#{places}", rotated(text, places) if places else text
        places += 1


def pages(template: bool) -> Iterator[tuple[str, str]]:
    """Yields 50,000 pages of one template, or unlike ones of the same length."""
    rng = random.Random(1)
    common = [f"w{rng.randrange(50_000)}" for _ in range(60)]
    for number in range(PAGES):
        first = common if template else [f"w{rng.randrange(50_000)}" for _ in range(60)]
        facts = [f"fact{rng.randrange(50_000)}" for _ in range(24)]
        yield str(number), " ".join([*first[:30], *facts[:12], *first[30:], *facts[12:]])


def write(folder: Path, rows: Iterable[tuple[str, str]]) -> Path:
    """Writes rows of (id, text) as Parquet."""
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    folder.mkdir(parents=True)
    batch: list[dict[str, str]] = []
    with pq.ParquetWriter(folder / "corpus.parquet", schema, compression="zstd") as writer:
        for key, text in rows:
            batch.append({"id": key, "text": text})
            if len(batch) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))
    return folder


class Watch:
    """The peak of the proportional set size of all of this process's descendants."""

    def __init__(self) -> None:
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._end.wait(POLL_S):
            tree = psutil.Process().children(recursive=True)
            self.peak = max(self.peak, sum(_pss(process.pid) for process in tree))


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def curate(corpus: Path, workers: int, *more: str, watched: bool = True) -> dict[str, Any]:
    """Runs the command and returns what it cost, its memory if it is watched.

    Watching takes a good part of a core where two workers want both.
    """
    with tempfile.TemporaryDirectory() as out, Watch() if watched else nullcontext() as watch:
        command = [sys.executable, "-m", "flows.cli", "curate", "benchmarks/dedup_recipe.py:recipe"]
        command += ["--source", f"corpus={corpus}", "--out", f"{out}/set", "--json"]
        cpu, wall, stdout = run_counted([*command, "--workers", str(workers), *more])
    manifest = json.loads(stdout)
    cost = {
        "text_mb": round(manifest["bytes_in"] / 1e6, 1),
        "documents": manifest["documents_in"],
        "dropped": manifest["dropped"],
        "workers": workers,
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "mb_per_cpu_s": round(manifest["bytes_in"] / 1e6 / cpu, 2),
    }
    return cost if watch is None else cost | {"peak_pss_mib": watch.peak >> 20}


def speedup(corpus: Path) -> dict[str, Any]:
    """Compares wall times of one worker and of two, the medians of runs that take turns."""
    runs = {1: [], 2: []}
    for _ in range(TURNS):
        for workers, of_it in runs.items():
            of_it.append(curate(corpus, workers, watched=False))
    one, two = (sorted(of_it, key=lambda run: run["wall_s"]) for of_it in runs.values())
    middle = TURNS // 2
    return {
        "one": one[middle] | {"wall_s_of_runs": [run["wall_s"] for run in one]},
        "two": two[middle] | {"wall_s_of_runs": [run["wall_s"] for run in two]},
        "speedup": round(one[middle]["wall_s"] / two[middle]["wall_s"], 2),
    }


def main() -> None:
    """Writes benchmarks/results/dedup_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=250, help="the smallest input")
    options = parser.parse_args()
    result: dict[str, Any] = {"what": "FuzzyDedup at growing inputs, memory from outside"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kinds = {"templated": True, "unlike": False}
        for name, template in kinds.items():
            corpus = write(folder / name, pages(template))
            curate(corpus, 1)  # compiled and cached, as after set-up
            result[name] = curate(corpus, 1)
        cost = result["templated"]["cpu_s"] / result["unlike"]["cpu_s"]
        result["templated_to_unlike"] = round(cost, 2)
        rows = result["growth"] = []
        for times in (1, 2, 4, 8):
            corpus = write(folder / f"times-{times}", documents(times * options.megabytes))
            rows.append({"times": times} | curate(corpus, 1, "--memory", "1GiB"))
            first, last = rows[0], rows[-1]
            allowed = times * math.log(last["documents"]) / math.log(first["documents"])
            last["cost"] = round(last["cpu_s"] / first["cpu_s"], 2)
            last["n_log_n"] = round(allowed, 2)
            if times in (2, 8):
                result.setdefault("two_workers", []).append(speedup(corpus))
    result["machine"] = about(["gristmill", "numba", "pyarrow"])
    write_result("dedup_scale", result)


if __name__ == "__main__":
    main()
