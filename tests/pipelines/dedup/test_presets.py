"""The presets as they run: peers' pairs, our decision, and what a peer would have dropped."""

import gzip
import json
import random

import numpy as np
import pytest

from pipelines.dataset import Dataset
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.dedup.keep import Longest
from pipelines.dedup.minhash import MinHash
from pipelines.dedup.peer_decisions import decision_columns, peer_decisions
from pipelines.dedup.presets import REDPAJAMA_BANDS, fineweb, nemotron_cc, redpajama_v2
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe
from tests.pipelines.dedup.test_fuzzy import LICENCES, batch_of, run

PRESETS = [fineweb, nemotron_cc, redpajama_v2]


def chain(rng: random.Random, links: int = 40) -> list[str]:
    """Returns pages of which each is 0.9 like the next; the ends are not alike at all."""
    words = [f"{rng.choice('bcdfgk')}{rng.choice('aeiou')}{i:04d}" for i in range(120 + 5 * links)]
    names = [word.translate(str.maketrans("0123456789", "abcdefghij")) for word in words]
    return [" ".join(names[start : start + 120]) for start in range(0, 5 * links, 5)]


def closure(step: FuzzyDedup, texts: list[str], ids: list[str]) -> list[list[int]]:
    """Returns the components of the step's candidate pairs, each in the order of the policy."""
    bands, _, sizes = step.keys(batch_of(texts))
    of = {i: {i} for i in range(len(texts))}
    for band in bands.T.tolist():
        last: dict[int, int] = {}
        for i, value in enumerate(band):
            if sizes[i]:
                j = last.setdefault(value, i)
                joined = of[i] | of[j]
                of |= dict.fromkeys(joined, joined)
    found = {frozenset(group) for group in of.values() if len(group) > 1}
    return [sorted(group, key=lambda i: (-len(texts[i].encode()), ids[i])) for group in found]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)
def test_what_only_a_peer_drops_is_counted_and_named(tmp_path, preset):
    rng = random.Random(5)
    texts = chain(rng)
    own = [" ".join(f"{rng.choice(['red', 'sky', 'oak'])}{rng.random():.9f}" for _ in range(90))]
    texts += [*own, own[0] + " end", *(" ".join(chain(rng, 1)) for _ in range(3)), "...", "too few"]
    step = preset(keep=(Longest(),))
    rows = run(tmp_path, texts, step)
    ids = [row["id"] for row in rows]
    dropped = {i for i, row in enumerate(rows) if row["dropped_by"]}
    components = closure(step, texts, ids)
    inside = {i for group in components for i in group}
    peer_drops = {i for group in components for i in group[1:]}
    for i, row in enumerate(rows):
        group = next((group for group in components if i in group), None)
        assert row["near_duplicate_component_id"] == (ids[group[0]] if group else None)
        assert row["near_duplicate_component_size"] == (len(group) if group else 1)
    assert dropped < peer_drops  # the differences go one way, and here there are some
    dataset = Dataset(tmp_path / "out")
    found = peer_decisions(dataset.batches("ledger", decision_columns("near_duplicate")), step.rule)
    assert found.components == len(components)
    assert found.linked == len(inside)
    assert found.largest == max(map(len, components))
    assert found.dropped == len(dropped)
    assert found.peer_only == len(peer_drops - dropped) > 3
    assert found.sources["s"].documents == len(texts)
    first = {i: ids[group[0]] for group in components for i in group}
    named = sorted((ids[i], first[i]) for i in peer_drops - dropped)
    assert found.examples == named[:5]


def test_a_closure_that_verification_confirms_differs_in_nothing(tmp_path):
    text = " ".join(chain(random.Random(6), 1))
    run(tmp_path, [text, text + " end", "something else altogether"], FuzzyDedup())
    batches = Dataset(tmp_path / "out").batches("ledger")
    found = peer_decisions(batches, "near_duplicate")
    assert (found.components, found.linked, found.largest) == (1, 2, 2)
    assert (found.dropped, found.peer_only, found.examples) == (1, 0, [])


def test_texts_that_only_a_signature_sees_are_like_nothing(tmp_path):
    """NeMo hashes punctuation; our shingles have no words of it, so nothing can be verified."""
    rows = run(tmp_path, ["- - - - -", "- - - - -", "...", "..."], nemotron_cc())
    assert [row["dropped_by"] for row in rows] == [None] * 4
    assert [row["near_duplicate_component_size"] for row in rows] == [2] * 4


def test_digits_count_as_one_at_fineweb():
    line = "on day {} the level of the river at the old station {} was measured at {} metres"
    texts = [" ".join(line.format(n, i, n * i + 1_000) for i in range(9)) for n in (100, 101)]
    bands, _, _ = fineweb().keys(batch_of(texts))
    assert (bands[0] == bands[1]).all()
    offsets, values = fineweb().sets(batch_of(texts))
    first, second = values[: offsets[1]], values[offsets[1] :]
    assert first.tolist() == second.tolist()
    offsets, values = FuzzyDedup().sets(batch_of(texts))
    assert len(np.intersect1d(values[: offsets[1]], values[offsets[1] :])) < 0.75 * offsets[1]


def test_bands_are_the_published_ones():
    assert fineweb().keys(batch_of(["a b c d e f"]))[0].shape == (1, 14)
    assert nemotron_cc().keys(batch_of(["a"]))[0].shape == (1, 20)
    for similarity, (bands, rows) in REDPAJAMA_BANDS.items():
        step = redpajama_v2(similarity)
        assert step.min_similarity == similarity
        assert step.keys(batch_of(["a"]))[0].shape == (1, bands)
        assert bands * rows <= 128
    with pytest.raises(ValueError, match=r"similarity is 0.75; wanted one of: 0.7, 0.8, 0.9, 1.0"):
        redpajama_v2(0.75)


def test_a_signatures_libraries_are_identity():
    def identity(step: FuzzyDedup) -> dict:
        return Recipe("r", (JsonlReader(),), (step,)).identity()

    assert identity(fineweb())["libraries"].keys() >= {"datatrove", "spacy"}
    assert "datatrove" not in identity(nemotron_cc())["libraries"]
    described = [json.dumps(identity(step)["steps"]) for step in (fineweb(), nemotron_cc())]
    assert '"hash_function": "sha1"' in described[0]
    assert '"NemoMinHash", "num_bands": 20, "num_rows": 13' in described[1]


@pytest.mark.skipif(not LICENCES.exists(), reason="needs ../shared/data/licences")
def test_licences_lose_fewer_than_by_closure(tmp_path):
    with gzip.open(next(LICENCES.glob("*.gz")), "rt") as stream:
        texts = [json.loads(line)["text"] for line in stream][:700]
    for name, step in {
        "nemotron": nemotron_cc((Longest(),)),
        "redpajama": redpajama_v2(keep=(Longest(),)),
        "own": FuzzyDedup(keep=(Longest(),), signature=MinHash()),
    }.items():
        rows = run(tmp_path / name, texts, step)
        batches = Dataset(tmp_path / name / "out").batches("ledger")
        found = peer_decisions(batches, step.rule)
        assert found.linked - found.components == found.dropped + found.peer_only
        assert found.peer_only > 0
        assert sum(row["dropped_by"] is not None for row in rows) == found.dropped > 20
