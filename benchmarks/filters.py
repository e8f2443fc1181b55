"""Our filters beside datatrove's: the same decisions, document by document, and the speed.

Agreement: every document of this machine's Python packages up to 20 KB, until there are enough, is
judged by ours, by datatrove with its own (spaCy) words and by datatrove with white-space words.
Where decisions differ, the rule that differs, its two values and an example are listed with the
reason. Speed: CPU seconds of one process on a prefix for both, and on more text for ours.

    python -m benchmarks.filters [--documents 2000] [--prefix 5] [--megabytes 60]
"""

import argparse
import gzip
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import fasttext
import ftfy
import numpy as np
import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.filters import LanguageFilter
from datatrove.pipeline.filters import gopher_quality_filter as peer_quality
from datatrove.pipeline.filters import gopher_repetition_filter as peer_repetition
from datatrove.utils.text import PUNCTUATION_SET, split_into_words

from benchmarks.curation import texts
from benchmarks.curation_datatrove import LocalModel
from benchmarks.machine import about, write_result
from filters.gopher_quality import GopherQuality
from filters.gopher_repetition import GopherRepetition
from filters.language import LanguageId
from pipelines.clean import CleanText
from pipelines.clean_kernels import COMPOSES, CONTROL, MOJIBAKE, suspects
from pipelines.scan import scan
from pipelines.step import Filter, Step, broken

LARGEST_DOCUMENT = 20_000
BATCH_BYTES = 8 << 20
REPEATS = 5
LANGUAGES = Path(__file__).parents[2] / "shared" / "data" / "languages" / "sentences.jsonl.gz"
LARGE_LANGUAGES = (
    *("en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "uk"),
    *("ja", "zh", "ko", "ar", "tr", "vi", "cs", "sv", "fa", "hi"),
)
Split = Callable[[str, str], list[str]]

QUALITY_REASONS = {
    "gopher_short_doc": "too_few_words",
    "gopher_long_doc": "too_many_words",
    "gopher_below_avg_threshold": "words_too_short",
    "gopher_above_avg_threshold": "words_too_long",
    "gopher_too_many_hashes": "too_many_hash_signs",
    "gopher_too_many_ellipsis": "too_many_ellipses",
    "gopher_too_many_bullets": "too_many_bullet_lines",
    "gopher_too_many_end_ellipsis": "too_many_ellipsis_lines",
    "gopher_below_alpha_threshold": "too_few_alpha_words",
    "gopher_enough_stop_words": "too_few_stop_words",
}
REPETITION_REASONS = {
    "empty": "empty_text",
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_characters",
    **{f"top_{n}_gram": f"top_{n}_gram_characters" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_gram_characters" for n in range(5, 11)},
}
# Why a rule gives another answer on spaCy's words than on words split at white space.
EXPLANATIONS = {
    "too_few_words": "spaCy splits foo.bar(baz) into several words, so it counts more of them",
    "words_too_short": "spaCy's words are parts of ours, hence shorter",
    "words_too_long": "white-space words of code and tables are long; spaCy cuts them up",
    "too_many_hash_signs": "spaCy counts more words, so there are fewer signs for each",
    "too_many_ellipses": "spaCy counts more words, so there are fewer ellipses for each",
    "too_few_alpha_words": "spaCy makes words of punctuation, which hold no letter; split at white "
    "space, punctuation sticks to a word that does",
    "too_few_stop_words": 'spaCy finds "of" in "(of" and "the" in "the,"',
    "top_n_gram": "spaCy's n-grams are of punctuation too, as ') )', and joined with spaces that "
    "the text does not have",
    "duplicate_n_gram": "an n-gram of spaCy's words spans fewer characters, so more are repeated",
}


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


def first_broken(step: Filter, batch: pa.RecordBatch) -> list[str | None]:
    """Returns the first rule that each document breaks."""
    masks = np.array([broken(rule, step, batch) for rule in step.rules])
    names = [rule.name for rule in step.rules]
    return [names[row.argmax()] if row.any() else None for row in masks.T]


def peer_verdicts(
    module: Any, peer: Any, split: Split, reasons: dict, values: Sequence[str]
) -> list:
    """Returns datatrove's first reason for each text, under our rule's name."""
    original, module.split_into_words = module.split_into_words, split
    try:
        verdicts = [peer.filter(Document(text=value, id="0")) for value in values]
    finally:
        module.split_into_words = original
    return [None if verdict is True else reasons[verdict[1]] for verdict in verdicts]


def white_space(text: str, _language: str) -> list[str]:
    return text.split()


def value_of(rule: str, text: str, words: list[str]) -> float:
    """Returns what a rule compares, computed in plain Python on the given words."""
    plain = [word for word in words if any(c not in PUNCTUATION_SET for c in word)]
    number = int((re.findall(r"\d+", rule) or [0])[0])
    if rule in ("too_few_words", "too_many_words"):
        return len(plain)
    if rule in ("words_too_short", "words_too_long"):
        return sum(map(len, plain)) / max(len(plain), 1)
    if rule == "too_many_hash_signs":
        return text.count("#") / len(words)
    if rule == "too_many_ellipses":
        return (text.count("...") + text.count("\N{HORIZONTAL ELLIPSIS}")) / len(words)
    if rule == "too_few_alpha_words":
        return sum(any(c.isalpha() for c in word) for word in words) / len(words)
    if rule == "too_few_stop_words":
        return len(set(words) & set(GopherQuality().stop_words))
    if rule.startswith("top_"):
        grams = peer_repetition.get_n_grams(words, number)
        return peer_repetition.find_top_duplicate(grams) / len(text) if grams else 0.0
    if rule.endswith("_gram_characters"):
        return peer_repetition.find_all_duplicate(words, number) / len(text)
    return float("nan")


def differences(ours: list, theirs: list, values: Sequence[str]) -> list[dict[str, Any]]:
    """Returns each class of difference: the rules, how often, why, and the shortest example."""
    classes = defaultdict(list)
    for mine, other, text in zip(ours, theirs, values, strict=True):
        if (mine is None) != (other is None):
            classes[(mine, other)].append(text)
    result = []
    for (mine, other), found in sorted(classes.items(), key=lambda item: -len(item[1])):
        rule = mine or other
        kind = re.sub(r"_\d+_gram.*", "_n_gram", rule)
        text = min(found, key=len)
        result.append(
            {
                "gristmill": mine or "keeps",
                "datatrove": other or "keeps",
                "documents": len(found),
                "because": EXPLANATIONS[kind],
                "example": " ".join(text.split())[:120],
                "value_on_white_space_words": round(value_of(rule, text, text.split()), 4),
                "value_on_spacy_words": round(value_of(rule, text, split_into_words(text)), 4),
            }
        )
    return result


def agreement(ours: list, theirs: list) -> dict[str, int]:
    pairs = Counter((mine is None, other is None) for mine, other in zip(ours, theirs, strict=True))
    return {
        "same_decision": pairs[True, True] + pairs[False, False],
        "only_datatrove_drops": pairs[True, False],
        "only_gristmill_drops": pairs[False, True],
        "same_first_rule": sum(mine == other for mine, other in zip(ours, theirs, strict=True)),
    }


def compare_gopher(values: list[str]) -> dict[str, Any]:
    """Compares both Gopher filters, document by document."""
    batch = pa.record_batch({"text": pa.array(values)})
    result = {}
    for step, module, peer, reasons in (
        (
            GopherQuality(),
            peer_quality,
            peer_quality.GopherQualityFilter(),
            QUALITY_REASONS,
        ),
        (
            GopherRepetition(),
            peer_repetition,
            peer_repetition.GopherRepetitionFilter(),
            REPETITION_REASONS,
        ),
    ):
        ours = first_broken(step, step(batch))
        same_words = peer_verdicts(module, peer, white_space, reasons, values)
        spacy_words = peer_verdicts(module, peer, split_into_words, reasons, values)
        result[step.name] = {
            "documents": len(values),
            "gristmill_keeps": ours.count(None),
            "datatrove_keeps": spacy_words.count(None),
            "against_white_space_words": agreement(ours, same_words),
            "against_spacy_words": agreement(ours, spacy_words),
            "differences_from_spacy_words": differences(ours, spacy_words, values),
        }
    return result


def compare_language(values: list[str]) -> dict[str, Any]:
    """Compares language id with datatrove's filter on the whole text, same model."""
    step = LanguageId()
    batch = step(pa.record_batch({"text": pa.array(values)}))
    ours = first_broken(step, batch)
    peer = language_peer()
    documents = [Document(text=value, id="0") for value in values]
    theirs = [None if peer.filter(document) else "dropped" for document in documents]
    labels = [document.metadata["language"] for document in documents]
    short = [len(value.encode()) <= step.max_bytes for value in values]
    same = [(a is None) == (b is None) for a, b in zip(ours, theirs, strict=True)]
    return {
        "documents": len(values),
        "same_language": sum(
            a == b for a, b in zip(batch["language"].to_pylist(), labels, strict=True)
        ),
        **agreement(ours, theirs),
        "documents_read_whole": sum(short),
        "of_these_same_decision": sum(
            s for s, is_short in zip(same, short, strict=True) if is_short
        ),
        "because": f"a document of more than {step.max_bytes} bytes is read at eight places; much "
        "of this corpus is code, whose score lies near the threshold",
    }


def language_peer() -> LanguageFilter:
    # it asks for a fork of fasttext by the distribution's name; the official one does the same
    LanguageFilter._requires_dependencies = []
    peer = LanguageFilter(["en"], language_threshold=0.65)
    peer.model = LocalModel()
    return peer


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
        "LanguageId": language_peer(),
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
