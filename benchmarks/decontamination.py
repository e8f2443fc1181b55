"""Decontamination against GSM8K's test problems: recall by form of edit, false hits, speed, a peer.

Each of the 1,319 problems is planted in a page of documentation or source code, once in each form
(benchmarks/decontamination_forms.py), and in a page of 20 KB or more. A document of the clean text
in which nothing was planted and that is a hit all the same is listed, with what was matched. The
two that there were are no errors: reasoning-gym's GSM-symbolic generators hold GSM8K test problems
with place-holders for names and numbers.

datatrove's 12-gram filter, with an index of the same problems, judges the first problems' pages and
a prefix of the clean text.

    python -m benchmarks.decontamination [--megabytes 500] [--prefix 10] [--peer-problems 150]
"""

import argparse
import gzip
import json
import random
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.curation import texts
from benchmarks.decontamination_forms import Forms, plant
from benchmarks.machine import ROOT, about, write_result
from pipelines.benchmark_sets import Benchmark, read_benchmark
from pipelines.decontaminate import CutContaminated, Decontaminate

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
BATCH_BYTES = 8 << 20
PAGE_BYTES, LONG_PAGE_BYTES = (1_000, 5_000), (20_000, 100_000)
NEAR_SHARE = 0.3
"""Clean documents with a share above it are counted, to show how far they are from being hits."""


class Planted(NamedTuple):
    """Pages with a problem each."""

    pages: list[str]
    starts: list[int]
    ends: list[int]


def batches(documents: Sequence[str]) -> list[pa.RecordBatch]:
    """Returns the texts in batches as a reader would make them."""
    parts, part, size = [], [], 0
    for text in documents:
        part.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            parts.append(part)
            part, size = [], 0
    parts.append(part)
    return [pa.record_batch({"text": pa.array(part, pa.string())}) for part in parts]


def judge(step: Decontaminate | CutContaminated, documents: Sequence[str]) -> pa.Table:
    """Returns the columns that a step adds."""
    return pa.Table.from_batches([step(batch) for batch in batches(documents)])


def planted(problems: Sequence[str], edit: Any, pages: Sequence[str]) -> Planted:
    """Returns a page for each problem, with the bytes where the edited problem lies."""
    result = Planted([], [], [])
    for number, problem in enumerate(problems):
        rng = random.Random(number)
        text = edit(problem, rng)
        page = plant(pages[number % len(pages)], text, rng)
        start = len(page[: page.index(f"\n{text}\n") + 1].encode())
        result.pages.append(page)
        result.starts.append(start)
        result.ends.append(start + len(text.encode()))
    return result


def recall(step: Decontaminate, cut: CutContaminated, there: Planted) -> dict[str, Any]:
    """Returns which problems were found, and how well they were cut."""
    found = judge(step, there.pages)
    items = np.array(found["contaminated_item"])
    inside = outside = hit_bytes = 0
    edited = judge(cut, there.pages)["contaminated_spans"].to_pylist()
    for spans, start, end in zip(edited, there.starts, there.ends, strict=True):
        for span in spans:
            common = min(span["end"], end) - max(span["start"], start)
            inside += max(common, 0)
            outside += span["end"] - span["start"] - max(common, 0)
        hit_bytes += end - start if spans else 0
    return {
        "found": round(float((items >= 0).mean()), 4),
        "as_the_planted_problem": round(float((items == np.arange(len(items))).mean()), 4),
        "cut_of_found_problems_bytes": round(inside / max(hit_bytes, 1), 4),
        "cut_beside_them_bytes": outside,
    }


def false_hits(
    step: Decontaminate,
    cut: CutContaminated,
    problems: Sequence[str],
    paths: list[str],
    documents: list[str],
) -> dict[str, Any]:
    """Judges clean text, with the CPU time of it, and shows what was hit."""
    parts = batches(documents)
    step(parts[0])
    start = time.process_time()
    found = pa.Table.from_batches([step(batch) for batch in parts])
    cpu = time.process_time() - start
    size = sum(batch.column("text").nbytes for batch in parts) / 1e6
    shares = np.array(found["contamination_share"])
    rows = np.flatnonzero(np.array(found["contaminated_item"]) >= 0)
    hits = []
    for row in rows[np.argsort(-shares[rows])].tolist():
        spans = judge(cut, [documents[row]])["contaminated_spans"][0].as_py()
        data = documents[row].encode()
        best = max(spans, key=lambda span: span["share"])
        hits.append(
            {
                "path": shortened(paths[row]),
                "share": round(float(shares[row]), 4),
                "spans": len(spans),
                "matched": data[best["start"] : best["end"]].decode()[:300],
                "problem": problems[best["item"]][:300],
            }
        )
    return {
        "text_mb": round(size, 1),
        "documents": len(documents),
        "hits": len(hits),
        f"share_over_{NEAR_SHARE}_and_no_hit": int((shares >= NEAR_SHARE).sum()) - len(hits),
        "cpu_s": round(cpu, 2),
        "mb_per_cpu_s": round(size / cpu, 1),
        "what_was_hit": hits,
    }


def shortened(path: str) -> str:
    """Returns a path without the place where Python is installed."""
    for root in (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"]):
        path = path.removeprefix(root)
    return path.lstrip("/")


class Peer:
    """datatrove's filter with its default configuration and an index of the same problems."""

    def __init__(self, problems: Sequence[str], folder: str) -> None:
        from datatrove.pipeline.decont import NGramsDecontFilter
        from datatrove.utils.text import ngrams, simplify_text

        self.filter = NGramsDecontFilter(folder)
        config, hashes = self.filter.config, set()
        for problem in problems:
            # as NGramsDecontIndexer.compute_hashes, which cannot be made without lighteval
            words = self.filter.tokenizer.word_tokenize(simplify_text(problem, config.norm_config))
            grams = map(" ".join, ngrams(words, config.n_grams))
            hashes.update(map(self.filter.hash_func, grams))
        array = np.array(sorted(hashes), config.hash_config.np_descr)
        array.tofile(Path(folder, "gsm8k.index.hashes"))
        self.filter.load_index_hashes()

    def hits(self, documents: Sequence[str]) -> np.ndarray:
        """Returns bool (documents,)."""
        from datatrove.data import Document

        made = (Document(text=text, id=str(i)) for i, text in enumerate(documents))
        return np.array([self.filter.filter(document) is not True for document in made])


def beside_peer(
    step: Decontaminate,
    forms: dict[str, Planted],
    clean: list[str],
    problems: Sequence[str],
    count: int,
) -> dict[str, Any]:
    """Judges the first pages of each form and some clean text with both."""
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(problems, folder)
        found = {}
        for name, there in forms.items():
            ours = np.array(judge(step, there.pages[:count])["contaminated_item"]) >= 0
            theirs = peer.hits(there.pages[:count])
            found[name] = {
                "gristmill": round(float(ours.mean()), 4),
                "datatrove": round(float(theirs.mean()), 4),
            }
        size = sum(len(text.encode()) for text in clean) / 1e6
        start = time.process_time()
        hits = peer.hits(clean)
        cpu = time.process_time() - start
    start = time.process_time()
    ours = np.array(judge(step, clean)["contaminated_item"]) >= 0
    own_cpu = time.process_time() - start
    return {
        "problems": count,
        "clean_text_mb": round(size, 1),
        "false_hits": {"gristmill": int(ours.sum()), "datatrove": int(hits.sum())},
        "mb_per_cpu_s": {
            "gristmill": round(size / own_cpu, 1),
            "datatrove": round(size / cpu, 2),
        },
        "found": found,
    }


def main() -> None:
    """Writes benchmarks/results/decontamination.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--prefix", type=float, default=10)
    parser.add_argument("--peer-problems", type=int, default=150)
    parser.add_argument("--gsm8k", type=Path, default=GSM8K)
    options = parser.parse_args()
    known = Benchmark("gsm8k", str(options.gsm8k / "test.jsonl.gz"))
    step, cut = Decontaminate((known,)), CutContaminated((known,))
    start = time.process_time()
    facts = step.facts()
    result: dict[str, Any] = {
        "what": "GSM8K test problems planted in clean text: recall by form, false hits, speed",
        "search": repr(step.search),
        "min_share": step.min_share,
        "index_cpu_s": round(time.process_time() - start, 2),
        **facts,
    }
    problems = read_benchmark(known).texts
    paths, clean = map(list, zip(*texts(options.megabytes), strict=True))
    result["clean_text"] = false_hits(step, cut, problems, paths, clean)
    shares = np.array(judge(step, clean)["contamination_share"])
    free = [text for text, share in zip(clean, shares, strict=True) if share < NEAR_SHARE]
    short, long = (
        [text for text in free if least <= len(text.encode()) <= most][: len(problems)]
        for least, most in (PAGE_BYTES, LONG_PAGE_BYTES)
    )
    with gzip.open(options.gsm8k / "train.jsonl.gz", "rt") as stream:
        others = [json.loads(next(stream))["question"] for _ in range(7_000)]
    forms = {name: planted(problems, edit, short) for name, edit in Forms(others).all.items()}
    forms["verbatim_in_long_pages"] = planted(problems, lambda text, rng: text, long)
    result["recall"] = {name: recall(step, cut, there) for name, there in forms.items()}
    prefix, left = [], options.prefix * 1e6
    for text in clean:
        left -= len(text.encode())
        if left < 0:
            break
        prefix.append(text)
    result["beside_datatrove"] = beside_peer(step, forms, prefix, problems, options.peer_problems)
    result["machine"] = about(["gristmill", "datatrove", "numba", "pyarrow", "spacy"])
    write_result("decontamination", result)


if __name__ == "__main__":
    main()
