"""Our filters' decisions beside datatrove's, document by document, for `benchmarks.filters`.

datatrove judges with its own (spaCy) words and with words split at white space, as ours are. Each
class of difference comes with the rule, its two values, an example and the reason.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.filters import gopher_quality_filter as peer_quality
from datatrove.pipeline.filters import gopher_repetition_filter as peer_repetition
from datatrove.utils.text import PUNCTUATION_SET, split_into_words

from benchmarks.curation_datatrove import language_filter
from filters.gopher_quality import GopherQuality
from filters.gopher_repetition import GopherRepetition
from filters.language import LanguageId
from pipelines.step import Filter, broken

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
    peer = language_filter()
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
