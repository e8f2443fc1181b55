"""Substring dedup against a walk over all windows with a dict."""

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup import windows
from pipelines.dedup.keep import Longest
from pipelines.dedup.substring import SubstringDedup
from tests.pipelines.dedup.span_harness import run_stages


def covered(texts: dict[str, str], step: SubstringDedup) -> dict[str, list[str | None]]:
    """Returns of each byte of each text the document of the first occurrence that it repeats.

    A byte of several duplicate windows goes with the first of these.
    """
    order = sorted(texts)
    if step.keep:
        order.sort(key=lambda i: -len(texts[i].encode()))
    size, first, found = step.min_bytes, {}, {}
    for i in order:
        data = texts[i].encode()
        of: list[str | None] = [None] * len(data)
        for at in range(len(data) - size + 1):
            there, where = first.setdefault(data[at : at + size], (i, at))
            if there != i or where + size <= at:
                for byte in range(at, at + size):
                    of[byte] = of[byte] or there
        found[i] = of
    return found


SENTENCE = re.compile(r"(?:[.!?][\"')\]]*[ \t]+(?![ \t])|[\u3002\uff01\uff1f]|\n)")


def bounds(text: str, kind: str) -> set[int]:
    """Returns the bytes at which a text may be cut."""
    edges = range(len(text) + 1)
    if kind == "line":
        edges = [0, *(at for at in edges if text[at - 1 : at] == "\n"), len(text)]
    elif kind == "sentence":
        edges = [0, *(match.end() for match in SENTENCE.finditer(text)), len(text)]
    return {len(text[:at].encode()) for at in edges}


def oracle(texts: dict[str, str], step: SubstringDedup) -> dict[str, list[dict]]:
    """Returns the spans to cut of each text."""
    spans = {}
    for i, of in covered(texts, step).items():
        allowed, characters = bounds(texts[i], step.bounds), bounds(texts[i], "character")
        found: list[dict] = []
        at = 0
        while at < len(of):
            stop = at
            while stop < len(of) and of[stop] is not None:
                stop += 1
            inside = [byte for byte in range(at, stop + 1) if byte in allowed]
            if stop > at and inside and inside[0] < inside[-1]:
                found += segments(of, inside[0], inside[-1], characters)
            at = max(stop, at + 1)
        spans[i] = found
    return spans


def segments(of: list, low: int, high: int, characters: set[int]) -> list[dict]:
    """Parts a span where the document of the first occurrence changes, between characters."""
    found: list[dict] = []
    at = low
    while at < high:
        stop = at
        source = of[at]
        while stop < high and of[stop] == source:
            stop += 1
        while stop not in characters:
            stop -= 1
        if stop > at:
            if found and found[-1]["matched_id"] == source:
                found[-1]["end"] = stop
            else:
                found.append({"start": at, "end": stop, "matched_id": source})
            at = stop
        else:  # the whole character goes with the next one
            of[at] = next(one for one in of[at:high] if one != source)
    return found


def without(text: str, spans: list[dict]) -> str:
    data, at, kept = text.encode(), 0, b""
    for span in spans:
        kept += data[at : span["start"]]
        at = span["end"]
    return (kept + data[at:]).decode()


LETTERS = st.text("ab", max_size=30)
WORDS = st.sampled_from(
    ["ab", "ba", "abab", ". ", "! ", '." ', "\n", " ", "caf\u00e9", "\u65e5\u672c", "\u3002", "?"]
)
TEXTS = st.one_of(LETTERS, st.lists(WORDS, max_size=14).map("".join), st.just("a" * 40))
STEPS = st.builds(
    SubstringDedup,
    min_bytes=st.sampled_from([2, 3, 5, 8, 11]),
    bounds=st.sampled_from(["character", "line", "sentence"]),
    keep=st.sampled_from([(), (Longest(),)]),
)


@given(
    files=st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=1, max_size=3),
    step=STEPS,
    parts=st.integers(1, 4),
    run_marks=st.integers(1, 30),
    most_paired=st.sampled_from([1, 2, 64]),
)
@settings(max_examples=150, deadline=None)
def test_substrings_are_cut_as_a_walk_over_all_windows_cuts(
    files, step, parts, run_marks, most_paired
):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "MOST_PAIRED", most_paired)
        texts, found = run_stages(Path(name), files, step, parts, run_marks)
    alive = {i: text for i, text in texts.items() if text.strip()}
    spans = oracle(alive, step)
    for i, row in found.items():
        if i not in alive:
            assert row["dropped_by"] == "no_text"
            assert row["duplicate_substring_spans"] is None
            continue
        assert row["duplicate_substring_spans"] == spans[i]
        assert row["n_duplicate_substring_spans"] == len(spans[i])
        size = sum(span["end"] - span["start"] for span in spans[i])
        assert row["duplicate_substring_bytes"] == size
        assert row["after"] == without(texts[i], spans[i])
        assert row["dropped_by"] == (None if row["after"].strip() else "no_text")
