"""Line and paragraph dedup against a walk over all pieces with a set."""

import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate import Settings, curate
from pipelines.dedup.keep import Longest
from pipelines.dedup.pieces import PieceDedup
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source
from tests.pipelines.dedup.span_harness import run_stages


def pieces(text: str, unit: str) -> list[str]:
    """Parts a text into lines or paragraphs, every character of it."""
    lines = re.findall(r"[^\n]*\n|[^\n]+$", text)
    if unit == "line":
        return lines
    found: list[list[str]] = []
    for line in lines:
        blank = not line.strip(" \t\r\n")
        ended = (
            bool(found)
            and not found[-1][-1].strip(" \t\r\n")
            and any(part.strip(" \t\r\n") for part in found[-1])
        )
        if not found or (ended and not blank):
            found.append([])
        found[-1].append(line)
    return ["".join(part) for part in found]


def oracle(texts: dict[str, str], step: PieceDedup) -> tuple[dict[str, str], dict[str, list]]:
    """Returns what is left of each text and the spans that were cut, by id."""
    order = sorted(texts)
    if step.keep:
        order.sort(key=lambda i: -len(texts[i].encode()))
    documents = Counter(
        key for i in order for key in {" ".join(p.split()) for p in pieces(texts[i], step.unit)}
    )
    first: dict[str, str] = {}
    left, spans = {}, {}
    for i in order:
        kept, cut, at = [], [], 0
        for piece in pieces(texts[i], step.unit):
            key, size = " ".join(piece.split()), len(piece.encode())
            counts = len(key.encode()) >= step.min_bytes and documents[key] >= step.min_documents
            if counts and key in first:
                cut.append({"start": at, "end": at + size, "matched_id": first[key]})
            else:
                kept.append(piece)
            first.setdefault(key, i)
            at += size
        left[i], spans[i] = "".join(kept), cut
    return left, spans


LINES = st.sampled_from(
    ["", " ", "\t", "a", "bb", "b b", "b  b\r", " b\u00a0b", "caf\u00e9", "\u65e5\u672c", "ccccc"]
)
TEXTS = st.lists(LINES, min_size=1, max_size=9).map("\n".join)
STEPS = st.builds(
    PieceDedup,
    unit=st.sampled_from(["line", "paragraph"]),
    min_bytes=st.integers(1, 4),
    min_documents=st.integers(1, 3),
    keep=st.sampled_from([(), (Longest(),)]),
)


@given(
    files=st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=1, max_size=3),
    step=STEPS,
    parts=st.integers(1, 4),
    run_marks=st.integers(1, 9),
)
@settings(max_examples=100, deadline=None)
def test_pieces_are_cut_as_a_walk_over_all_of_them_cuts(files, step, parts, run_marks):
    with tempfile.TemporaryDirectory() as name:
        texts, found = run_stages(Path(name), files, step, parts, run_marks)
    alive = {i: text for i, text in texts.items() if text.strip()}
    left, spans = oracle(alive, step)
    name = f"duplicate_{step.unit}"
    for i, row in found.items():
        if i not in alive:
            assert row["dropped_by"] == "no_text"
            assert row[f"{name}_spans"] is None
            continue
        assert row[f"{name}_spans"] == spans[i]
        assert row[f"n_{name}_spans"] == len(spans[i])
        assert row[f"{name}_bytes"] == sum(s["end"] - s["start"] for s in spans[i])
        assert row["after"] == left[i]
        assert row["dropped_by"] == (None if left[i].strip() else "no_text")


def test_step_that_cuts_most_of_a_source_stops_the_run(tmp_path, monkeypatch):
    texts = [f"{number}\n" + "the same long line on every page\n" * 3 for number in range(1_000)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    recipe = Recipe("pages", (JsonlReader(),), (PieceDedup(min_bytes=20),))
    source = Source("site", str(tmp_path / "in.jsonl"))
    wanted = "PieceDedup would cut 98967 of .* of source site"
    with pytest.raises(RuntimeError, match=wanted) as stop:
        curate(recipe, [source], tmp_path / "out", Settings(workers=1))
    assert str(stop.value).count("99 bytes cut in 3 spans") >= 2
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(PieceDedup, "max_share", 1.0)
    assert curate(recipe, [source], tmp_path / "out", Settings(workers=1))["kept"] == 1_000
