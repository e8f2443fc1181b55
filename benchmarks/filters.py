"""Our filters beside datatrove's: the same decisions, document by document, and the speed.

Agreement (`filters_decisions`) is of the documents of this machine's Python packages up to 20 KB,
until there are enough. Speed: CPU seconds of one process on a prefix for both, and on more text for
ours.

    python -m benchmarks.filters [--documents 2000] [--prefix 5] [--megabytes 60]
"""

import argparse
import gzip
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import fasttext
import ftfy
import numpy as np
import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.filters import gopher_quality_filter as peer_quality
from datatrove.pipeline.filters import gopher_repetition_filter as peer_repetition

from benchmarks.curation import texts
from benchmarks.curation_datatrove import language_filter
from benchmarks.filters_decisions import compare_gopher, compare_language
from benchmarks.machine import about, write_result
from filters.gopher_quality import GopherQuality
from filters.gopher_repetition import GopherRepetition
from filters.language import LanguageId
from pipelines.clean import CleanText
from pipelines.clean_kernels import COMPOSES, CONTROL, MOJIBAKE, suspects
from pipelines.scan import scan
from pipelines.step import Step

LARGEST_DOCUMENT = 20_000
BATCH_BYTES = 8 << 20
REPEATS = 5
LANGUAGES = Path(__file__).parents[2] / "shared" / "data" / "languages" / "sentences.jsonl.gz"
LARGE_LANGUAGES = (
    *("en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "uk"),
    *("ja", "zh", "ko", "ar", "tr", "vi", "cs", "sv", "fa", "hi"),
)


def batches_of(values: Sequence[str]) -> list[pa.RecordBatch]:
    """Returns record batches of about BATCH_BYTES of text."""
    whole = pa.array(values, pa.string())
    ends = np.cumsum([len(value.encode()) for value in values])
    cuts = np.searchsorted(ends, np.arange(BATCH_BYTES, ends[-1] + BATCH_BYTES, BATCH_BYTES)) + 1
    cuts = np.unique(np.minimum([0, *cuts], len(values)))
    return [
        pa.record_batch({"text": pa.concat_arrays([whole.slice(a, b - a)])})
        for a, b in pairwise(cuts.tolist())
    ]


def language_accuracy() -> dict[str, Any] | None:
    """Returns the share of right languages on 75 languages, alone and 30 sentences at a time."""
    if not LANGUAGES.is_file():
        return None
    sentences = defaultdict(list)
    with gzip.open(LANGUAGES, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            sentences[row["lang"]].append(row["text"])
    fasttext.FastText.eprint = lambda *_: None  # it warns of an API change on every load
    model = fasttext.load_model(LanguageId().model)
    known = {label.removeprefix("__label__") for label in model.labels}
    documents = {
        name: ["\n".join(found[i : i + 30]) for i in range(0, len(found) - 29, 30)]
        for name, found in sentences.items()
    }
    result = {}
    for kind, groups in (("sentences", sentences), ("documents_of_30_sentences", documents)):
        right = {}
        for name, found in groups.items():
            batch = LanguageId()(pa.record_batch({"text": pa.array(found)}))
            right[name] = float(np.mean([x == name for x in batch["language"].to_pylist()]))
        result[kind] = {
            "all_75": round(float(np.mean(list(right.values()))), 4),
            "those_the_model_knows": round(
                float(np.mean([right[name] for name in right if name in known])), 4
            ),
            "20_large": round(float(np.mean([right[name] for name in LARGE_LANGUAGES])), 4),
        }
    flat = [text.replace("\n", " ") for found in sentences.values() for text in found[:100]]
    labels, _ = model.predict(flat)
    batch = LanguageId()(pa.record_batch({"text": pa.array(flat)}))
    result["sentences_compared_with_fasttext"] = len(flat)
    result["of_these_same_language"] = sum(
        ours == theirs[0].removeprefix("__label__")
        for ours, theirs in zip(batch["language"].to_pylist(), labels, strict=True)
    )
    return result


def clean_up(values: list[str]) -> dict[str, Any]:
    """Says how many documents clean-up looks at, and whether it misses any that ftfy repairs."""
    array = pa.array(values)
    found = suspects(array)
    result = CleanText()(pa.record_batch({"text": array}))
    lines = sorted({line for value in values for line in value.split("\n") if not line.isascii()})
    repaired = [line for line in lines if ftfy.fix_encoding(line) != line]
    seen = int(np.count_nonzero(suspects(pa.array(repaired, pa.string())) & MOJIBAKE))
    return {
        "documents": len(values),
        "looked_at_for_mojibake": int(np.count_nonzero(found & MOJIBAKE)),
        "for_controls": int(np.count_nonzero(found & CONTROL)),
        "for_composition": int(np.count_nonzero(found & COMPOSES)),
        "mojibake_repaired": sum(result["mojibake_repaired"].to_pylist()),
        "nfc_changed": sum(result["nfc_changed"].to_pylist()),
        "lines_not_ascii": len(lines),
        "of_these_ftfy_repairs": len(repaired),
        "of_these_seen": seen,
    }


def seconds(work: Callable[[], object]) -> float:
    """Returns the CPU seconds of the fastest of REPEATS runs, after one that is not counted."""
    work()
    runs = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        runs.append(time.process_time() - start)
    return min(runs)


def our_speed(values: list[str]) -> dict[str, float]:
    """Returns MB of text per CPU second, each alone and together; every run scans anew."""
    batches = batches_of(values)
    size = sum(len(value.encode()) for value in values) / 1e6

    def run(*steps: Step) -> Callable[[], None]:
        def work() -> None:
            for batch in batches:
                scan(pa.array([""]))  # takes the place of the scan that is kept
                for step in steps:
                    batch = step(batch)

        return work

    def scan_all() -> None:
        for batch in batches:
            scan(batch.column("text"))

    clean, language = CleanText(), LanguageId()
    quality, repetition = GopherQuality(), GopherRepetition()
    works = {
        "scan": scan_all if len(batches) > 1 else run_scan(batches[0]),
        "GopherQuality": run(quality),
        "GopherRepetition": run(repetition),
        "GopherQuality, GopherRepetition": run(quality, repetition),
        "LanguageId": run(language),
        "LanguageId, GopherQuality, GopherRepetition": run(language, quality, repetition),
        "CleanText": run(clean),
        "all four": run(clean, language, quality, repetition),
    }
    return {name: round(size / seconds(work), 1) for name, work in works.items()}


def run_scan(batch: pa.RecordBatch) -> Callable[[], object]:
    def work() -> None:
        scan(pa.array([""]))
        scan(batch.column("text"))

    return work


def peer_speed(values: list[str]) -> dict[str, float]:
    """Returns datatrove's MB of text per CPU second; each filter splits words itself."""
    documents = [Document(text=value, id="0") for value in values]
    size = sum(len(value.encode()) for value in values) / 1e6
    peers = {
        "GopherQuality": peer_quality.GopherQualityFilter(),
        "GopherRepetition": peer_repetition.GopherRepetitionFilter(),
        "LanguageId": language_filter(),
    }
    result, total = {}, 0.0
    for name, peer in peers.items():
        peer.filter(documents[0])  # loads its model
        start = time.process_time()
        for document in documents:
            peer.filter(document)
        spent = time.process_time() - start
        total += spent
        result[name] = round(size / spent, 3)
    result["LanguageId, GopherQuality, GopherRepetition"] = round(size / total, 3)
    return result


def prefix_of(values: list[str], megabytes: float) -> list[str]:
    def up_to() -> Iterator[str]:
        left = megabytes * 1e6
        for value in values:
            if left <= 0:
                return
            left -= len(value.encode())
            yield value

    return list(up_to())


def main() -> None:
    """Writes benchmarks/results/filters.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--prefix", type=float, default=5)
    parser.add_argument("--megabytes", type=float, default=60)
    options = parser.parse_args()
    corpus = [text for _, text in texts(options.megabytes)]
    small = [text for text in corpus if len(text.encode()) <= LARGEST_DOCUMENT]
    small = small[: options.documents]
    prefix = prefix_of(small, options.prefix)
    ours, theirs = our_speed(prefix), peer_speed(prefix)
    result = {
        "what": "filters beside datatrove's: decisions and MB of text per CPU second, one process",
        "agreement": compare_gopher(small) | {"LanguageId": compare_language(small)},
        "language_accuracy": language_accuracy(),
        "clean_up": clean_up(small),
        "prefix_mb": round(sum(len(text.encode()) for text in prefix) / 1e6, 1),
        "prefix_documents": len(prefix),
        "gristmill_prefix": ours,
        "datatrove_prefix": theirs,
        "ratio_prefix": {name: round(ours[name] / theirs[name]) for name in theirs},
        "whole_mb": round(sum(len(text.encode()) for text in corpus) / 1e6, 1),
        "whole_documents": len(corpus),
        "gristmill_whole": our_speed(corpus),
        "machine": about(
            ["gristmill", "datatrove", "numba", "numpy", "pyarrow", "fasttext", "ftfy", "spacy"]
        ),
    }
    write_result("filters", result)


if __name__ == "__main__":
    main()
