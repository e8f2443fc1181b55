"""Corpora that made other systems remove what they should have kept, or keep what they should not.

Each trap is a dataset as it happens (facts on marin's and others' audits are in the docstrings).
"""

import gzip
import json
import random
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.dedup.keep import Longest
from pipelines.dedup.minhash import MinHash, Shingles
from tests.pipelines.dedup.test_fuzzy import LICENCES, batch_of, run, shingles_of, similarity

LANGUAGES = LICENCES.parent / "languages" / "sentences.jsonl.gz"


def words(rng: random.Random, number: int, names: str = "w") -> list[str]:
    return [f"{names}{rng.randrange(50_000)}" for _ in range(number)]


def dropped(rows: list[dict]) -> set[int]:
    """Returns the places of the dropped, each of which is checked to be like a kept one."""
    place = {row["id"]: i for i, row in enumerate(rows)}
    for row in rows:
        if row["dropped_by"] == FuzzyDedup.rule:
            assert row["similarity"] >= np.float32(0.8)
            assert rows[place[row["matched_id"]]]["dropped_by"] is None
    return {i for i, row in enumerate(rows) if row["dropped_by"] == FuzzyDedup.rule}


def test_fifty_thousand_pages_of_one_template_stay_and_true_copies_go(tmp_path):
    """A closure over links merged 743,779 such documents into one cluster elsewhere."""
    rng = random.Random(1)
    template = words(rng, 60)
    texts = []
    for _ in range(50_000):
        facts = words(rng, 24, "fact")
        texts.append(" ".join([*template[:30], *facts[:12], *template[30:], *facts[12:]]))
    copies = {50_000 + i: rng.randrange(50_000) for i in range(300)}
    texts += [texts[of] + " end" for of in copies.values()]
    rows = run(tmp_path, texts, FuzzyDedup(keep=(Longest(),)))
    gone = dropped(rows)
    assert len(gone) == len(copies)  # the original, or one of two copies of it
    for i in gone:
        assert i in copies or i in copies.values()
    assert max(row["near_duplicate_skipped"] for row in rows) > 0
    assert all(row["near_duplicate_skipped"] == 0 for row in rows if row["dropped_by"])


def test_books_that_share_a_licence_stay(tmp_path):
    """Elsewhere 97% of Gutenberg went because of its shared header and footer."""
    rng = random.Random(2)
    header, footer = words(rng, 700), words(rng, 2_500)
    books = [[*header, *words(rng, 6_000), *footer] for _ in range(40)]
    texts = [" ".join(book) for book in books]
    again = [" ".join(["Another", "edition", *book]) for book in books[:5]]
    rows = run(tmp_path, texts + again, FuzzyDedup(keep=(Longest(),)))
    assert dropped(rows) == set(range(5))


def test_documents_that_differ_only_in_numbers_stay_unless_digits_are_folded(tmp_path):
    line = "on day {} the level of the river at the old station {} was measured at {} metres"
    texts = [
        "\n".join(line.format(n, i, 1_000 + n * i) for i in range(30)) for n in range(100, 108)
    ]
    assert dropped(run(tmp_path / "kept", texts, FuzzyDedup())) == set()
    rows = run(tmp_path / "folded", texts, FuzzyDedup(shingles=Shingles(fold_digits=True)))
    assert len(dropped(rows)) == len(texts) - 1
    assert {row["similarity"] for row in rows} == {None, 1.0}


def test_very_short_documents_are_compared_whole(tmp_path):
    texts = ["Yes.", "yes", "No.", "one two", "One, two!", "one two three", "", "!", "a"]
    rows = run(tmp_path, texts, FuzzyDedup())
    gone = dropped(rows)
    assert len(gone & {0, 1}) == 1
    assert len(gone & {3, 4}) == 1
    assert len(gone) == 2


@pytest.mark.skipif(not LANGUAGES.exists(), reason="needs ../shared/data/languages")
def test_other_scripts_keep_their_documents_and_lose_their_copies(tmp_path):
    """Splitting at white space makes one word of a Chinese text, and all texts unlike."""
    sentences: dict[str, list[str]] = defaultdict(list)
    with gzip.open(LANGUAGES, "rt") as stream:
        for line in stream:
            row = json.loads(line)
            sentences[row["lang"]].append(row["text"])
    texts = []
    for found in sentences.values():
        parts = [" ".join(found[i : i + 30]) for i in (0, 30)]
        texts += [*parts, " ".join([*found[1:30], found[70]])]  # the third is like the first
    rows = run(tmp_path, texts, FuzzyDedup())
    gone = dropped(rows)
    for first in range(0, len(texts), 3):
        of_language = gone & {first, first + 1, first + 2}
        alike = similarity(shingles_of(texts[first]), shingles_of(texts[first + 2])) >= 0.8
        assert len(of_language) == alike, sentences
        assert first + 1 not in of_language
    assert len(gone) > 60


@pytest.mark.parametrize("threshold", [0.7, 0.8])
def test_recall_of_planted_pairs_is_what_bands_and_rows_predict(tmp_path, threshold):
    """Pairs of known similarity: none under the threshold goes, above as (1 - (1 - s^r)^b) says."""
    rng = random.Random(3)
    step = FuzzyDedup(min_similarity=threshold, shingles=Shingles(size=1))
    texts, similar = [], []
    for share in (60, 68, 72, 78, 82, 88, 94):
        for _ in range(150):
            chosen = [f"w{number}" for number in rng.sample(range(10**7), 100)]
            half = (100 - share) // 2
            texts.append(" ".join(chosen[: share + half]))
            texts.append(" ".join([*chosen[:share], *chosen[share + half :]]))
            similar.append(share / 100)
    rows = run(tmp_path, texts, step)
    found = np.array(
        [
            bool(a["dropped_by"] or b["dropped_by"])
            for a, b in zip(rows[::2], rows[1::2], strict=True)
        ]
    )
    for share in sorted(set(similar)):
        mine = found[np.array(similar) == share]
        if share < threshold:
            assert not mine.any()
            continue
        predicted = 1 - (1 - share**5) ** 20
        spread = np.sqrt(predicted * (1 - predicted) / len(mine))
        assert mine.mean() >= predicted - 0.02 - 3 * spread


def test_a_part_goes_by_containment_and_the_whole_stays(tmp_path):
    rng = random.Random(4)
    whole = words(rng, 300)
    texts = [" ".join(whole), " ".join(whole[:270]), " ".join(whole[:200])]
    by_union = run(tmp_path / "jaccard", texts, FuzzyDedup(keep=(Longest(),)))
    assert dropped(by_union) == {1}
    bands = MinHash(num_bands=60, num_rows=2)
    contained = FuzzyDedup(measure="containment", keep=(Longest(),), signature=bands)
    assert dropped(run(tmp_path / "containment", texts, contained)) == {1, 2}


def test_hashes_of_documents_without_words_are_their_own():
    bands = FuzzyDedup().keys(batch_of(["!", None, ""]))[0]
    assert len(np.unique(bands[:, 0])) == 3
    assert pa.array(bands[:, 0]).null_count == 0
