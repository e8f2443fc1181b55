"""Marks of shared shingles, against plain Python sets and against what deduplication decided."""

import gzip
import json
import unicodedata
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.compare import LEFT_OUT, Comparison, Piece, Side, Unit, compare, rows
from pipelines.dedup.folds import word_folds
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source

LICENCES = Path(__file__).parents[4] / "shared" / "data" / "licences" / "licences.jsonl.gz"
UNSPACED = "\u65e5\u672c\u0e01"

PIECES = ["The", "the", "CAT", "sat", "on", "2", "\u00c9t\u00e9", *UNSPACED, "-", "\n", "e\u0301"]
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=40).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.text(st.characters(max_codepoint=0x2FF), max_size=40),
)
UNITS: st.SearchStrategy[Unit] = st.sampled_from(["word", "character"])


def units_of(text: str, unit: Unit) -> list[str]:
    """Splits as the module says, character by character."""
    words: list[str] = []
    glue = False
    for character in text:
        if not (character.isalnum() or unicodedata.category(character)[0] == "M"):
            glue = False
        elif unit == "character":
            words += ([] if glue or not words else [" "]) + [character.lower()[0]]
            glue = True
        elif character in UNSPACED:
            words.append(character)
            glue = False
        elif glue:
            words[-1] += character.lower()[0]
        else:
            words.append(character.lower()[0])
            glue = True
    return words


def shingles_of(text: str, unit: Unit, size: int) -> list[tuple[str, ...]]:
    return runs_of(units_of(text, unit), size)


def runs_of(words: list[str], size: int) -> list[tuple[str, ...]]:
    size = min(size, len(words))
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)] if words else []


def jaccard(left: list[tuple[str, ...]], right: list[tuple[str, ...]]) -> float:
    one, other = set(left), set(right)
    return len(one & other) / len(one | other) if one or other else 0.0


def from_spans(side: Side, unit: Unit, size: int) -> set[tuple[str, ...]]:
    """Returns the shingles of the marked parts of a text, and of nothing else."""
    found: set[tuple[str, ...]] = set()
    for start, stop in side.spans():
        part = side.text[start:stop]
        blanks = unit == "character"  # those at the ends of a part are units, too
        found.update(
            runs_of(units_of(f"x{part}x", unit)[1:-1] if blanks else units_of(part, unit), size)
        )
    return found


@given(TEXT, TEXT, UNITS, st.integers(1, 7))
@settings(max_examples=400)
def test_compare_marks_are_the_shared_shingles_of_plain_sets(
    left: str, right: str, unit: Unit, size: int
) -> None:
    found = compare(left, right, unit, size, word_folds())
    one, other = (shingles_of(text, unit, size) for text in (left, right))
    assert found.jaccard == jaccard(one, other)
    for side, mine, theirs in ((found.left, one, other), (found.right, other, one)):
        assert side.shared.tolist() == [shingle in theirs for shingle in mine]
        assert from_spans(side, unit, size) == set(mine) & set(theirs)
        runs = [len(list(run)) for shared, run in groupby(side.shared.tolist()) if shared]
        assert len(side.spans()) == len(runs)
        for (start, _), (later, _) in pairwise(side.spans()):
            assert start < later


@given(TEXT, TEXT, UNITS, st.integers(1, 7))
@settings(max_examples=400)
def test_compare_gaps_lie_between_equal_runs_of_units(
    left: str, right: str, unit: Unit, size: int
) -> None:
    found = compare(left, right, unit, size, word_folds())
    one, other = units_of(left, unit), units_of(right, unit)
    a = c = 0
    for start, stop, right_start, right_stop in found.gaps:
        assert one[a:start] == other[c:right_start]
        assert start <= stop
        assert right_start <= right_stop
        assert stop > start or right_stop > right_start
        a, c = stop, right_stop
    assert one[a:] == other[c:]


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.data())
def test_compare_equal_texts_have_no_gap_and_an_edit_has_one(
    letters: list[str], data: st.DataObject
) -> None:
    words = [f"{letter}{place}" for place, letter in enumerate(letters)]
    text = " ".join(words)
    assert compare(text, text, "word", 3, word_folds()).gaps == ()
    at = data.draw(st.integers(0, len(words)))
    longer = " ".join([*words[:at], "new", *words[at:]])
    found = compare(text, longer, "word", 1, word_folds())
    assert found.gaps == ((at, at, at, at + 1),)


def shown(comparison: Comparison, most: int) -> list[tuple[str, str]]:
    """Returns the rows as text, shared parts in brackets."""
    return [(bracketed(left), bracketed(right)) for left, right in rows(comparison, most)[0]]


def bracketed(pieces: list[Piece]) -> str:
    return "".join(f"[{p.text}]" if p.kind == "shared" else p.text for p in pieces)


def test_rows_show_each_difference_beside_its_place_in_the_other_text() -> None:
    words = [f"w{number}" for number in range(300)]
    left = [*words[:100], "only", "left", *words[100:]]
    right = [*words[:200], "RIGHT", *words[200:]]
    found = compare(" ".join(left), " ".join(right), "word", 5, word_folds())
    first, second = shown(found, 9)
    before, after = " ".join(words[88:100]), " ".join(words[100:112])
    assert first == (f"...[{before}] only left [{after}]...", f"...[{before}] [{after}]...")
    before, after = " ".join(words[188:200]), " ".join(words[200:212])
    assert second == (f"...[{before}] [{after}]...", f"...[{before}] RIGHT [{after}]...")
    assert rows(found, 1)[1] == 1


@given(TEXT, TEXT, UNITS, st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=200)
def test_rows_hold_parts_of_the_texts_with_their_marks(
    left: str, right: str, unit: Unit, size: int, most: int
) -> None:
    found = compare(left, right, unit, size, word_folds())
    places, more = rows(found, most)
    assert 1 <= len(places) <= most
    assert len(places) + more <= max(1, len(found.gaps))
    for row in places:
        for side, pieces in zip((found.left, found.right), row, strict=True):
            text = "".join(piece.text for piece in pieces if piece.kind != "left out")
            assert text in side.text
            assert all(piece.text == LEFT_OUT for piece in pieces if piece.kind == "left out")
            marked = "".join(piece.text for piece in pieces if piece.kind == "shared")
            assert bool(marked) <= bool(side.spans())
            whole = not any(piece.kind == "left out" for piece in pieces)
            if whole and pieces:
                covered = {at for start, stop in side.spans() for at in range(start, stop)}
                assert marked == "".join(side.text[at] for at in sorted(covered))


def test_rows_of_long_differences_and_long_words_stay_short() -> None:
    same = " ".join(f"s{number}" for number in range(50))
    left = f"{same} {' '.join(f'l{number}' for number in range(9_000))} {same[::-1]}"
    right = f"{same} {'x' * 1_000_000} {same[::-1]}"
    found = compare(left, right, "word", 5, word_folds())
    places, more = rows(found, 9)
    assert (len(places), more) == (1, 0)
    for pieces in places[0]:
        assert sum(len(piece.text) for piece in pieces) < 2_000
    assert "l0 l1 l2" in "".join(piece.text for piece in places[0][0])
    assert "l8998 l8999" in "".join(piece.text for piece in places[0][0])


def test_rows_of_texts_without_a_difference_are_their_beginnings() -> None:
    words = [f"w{number}" for number in range(300)]
    found = compare(" ".join(words), ", ".join(words), "word", 5, word_folds())
    ((left, right),) = shown(found, 9)
    assert left == "[" + " ".join(words[:72]) + "]..."
    assert right == "[" + ", ".join(words[:72]) + "]..."


def test_compare_texts_without_words_share_nothing() -> None:
    for left, right in (("", ""), ("--", "!"), ("", "a b c")):
        found = compare(left, right, "word", 5, word_folds())
        assert (found.jaccard, found.left.spans(), found.right.spans()) == (0.0, [], [])
        assert len(rows(found, 3)[0]) == 1


@pytest.mark.skipif(not LICENCES.exists(), reason="needs the shared licences")
def test_compare_real_pairs_have_the_similarity_of_the_ledger(tmp_path: Path) -> None:
    with gzip.open(LICENCES, "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    recipe = Recipe("licences", (JsonlReader(),), (FuzzyDedup(min_similarity=0.7),))
    source = Source("licences", str(tmp_path / "in.jsonl"))
    curate(recipe, [source], tmp_path / "out", Settings(workers=1))
    dataset = Dataset(tmp_path / "out")
    kept = {row["id"]: row["text"] for row in dataset.table("data").to_pylist()}
    dropped = {row["id"]: row["text"] for row in dataset.table("dropped").to_pylist()}
    pairs = [row for row in dataset.table("ledger").to_pylist() if row["matched_id"]]
    assert len(pairs) > 400
    for row in pairs[:: len(pairs) // 60]:
        left, right = dropped[row["id"]], kept[row["matched_id"]]
        found = compare(left, right, "word", 5, word_folds())
        assert np.float32(found.jaccard) == np.float32(row["similarity"])
        one, other = (from_spans(side, "word", 5) for side in (found.left, found.right))
        assert one == other
        either = set(shingles_of(left, "word", 5)) | set(shingles_of(right, "word", 5))
        assert np.float32(len(one) / len(either)) == np.float32(row["similarity"])
