"""The walk against an independent one in Python, and the components that it is given."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup.links import components, in_packages, packages, shared_documents, weights
from pipelines.dedup.walk import Candidates, lined_up, walk_line
from pipelines.global_step import Comparison


def python_walk(
    sets: list[set], groups: list[set], comparison: Comparison
) -> list[tuple[int, float, int]]:
    """Returns anchor or -1, similarity and how many were skipped of documents in order."""
    containment, numerator, denominator, most = comparison
    kept: dict[object, list[int]] = {}
    found = []
    for i, mine in enumerate(sets):
        proposed = [j for group in groups[i] for j in kept.get(group, [])[:most]]
        skipped = sum(max(0, len(kept.get(group, [])) - most) for group in groups[i])
        possible = []
        for j in sorted(set(proposed), key=lambda j: (-proposed.count(j), j)):
            small, large = sorted((len(mine), len(sets[j])))
            small, large = (len(sets[j]), len(mine)) if containment else (small, large)
            if small * denominator >= numerator * large:
                possible.append(j)
        verdict = (-1, 0.0, skipped + max(0, len(possible) - most))
        for j in possible[:most]:
            common, of = len(mine & sets[j]), len(mine if containment else mine | sets[j])
            if common * denominator >= numerator * of:
                verdict = (j, common / of, 0)
                break
        if verdict[0] < 0:
            for group in groups[i]:
                kept.setdefault(group, []).append(i)
        found.append(verdict)
    return found


def sets_of(chosen: list[set]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.append(0, np.cumsum([len(s) for s in chosen])).astype(np.int64)
    return offsets, np.array([v for s in chosen for v in sorted(s)], np.uint64)


@given(
    st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=20),
    st.booleans(),
    st.sampled_from([(1, 2), (4, 5), (1, 1)]),
    st.integers(1, 4),
    st.integers(0, 60),
    st.randoms(use_true_random=False),
)
@settings(max_examples=300)
def test_walk_is_the_walk_in_python(sets, containment, share, most, budget, random):
    n = len(sets)
    bands = [[random.randrange(4) for _ in sets] for _ in range(3)]
    groups = [{(k, band[i]) for k, band in enumerate(bands)} for i in range(n)]
    names = sorted({group for mine in groups for group in mine})
    pairs = [(i, names.index(group)) for i, mine in enumerate(groups) for group in mine]
    member, group = np.array(pairs).T
    rank = random.sample(range(n), n)
    place = np.stack([rank, np.zeros(n, int), np.arange(n)], axis=1).astype(np.uint64)
    one = np.zeros(n, np.int64)
    line = lined_up(Candidates(place, one, np.arange(n), member, group))
    comparison = Comparison(containment, *share, most)
    pauses: list[int] = []
    order = line.row.tolist()
    walked = walk_line(
        line, *sets_of([sets[i] for i in order]), comparison, budget, lambda: pauses.append(1)
    )
    by_rank = sorted(range(n), key=lambda i: rank[i])
    wanted = python_walk([sets[i] for i in by_rank], [groups[i] for i in by_rank], comparison)
    found = zip(order, walked.anchors, walked.similarity, walked.skipped, strict=True)
    got = {i: (order[a] if a >= 0 else -1, float(s), int(k)) for i, a, s, k in found}
    for i, (anchor, similarity, skipped) in zip(by_rank, wanted, strict=True):
        assert got[i] == (by_rank[anchor] if anchor >= 0 else -1, similarity, skipped)
    assert pauses


@pytest.mark.parametrize("size", [60, 130, 190, 194, 250, 256, 258, 300, 5_000])
@pytest.mark.parametrize("overlap", [0.55, 0.7, 0.79, 0.8, 0.81, 0.9])
def test_sets_are_compared_exactly_though_hopeless_pairs_end_early(overlap, size):
    rng = np.random.default_rng(0)
    for number in range(40):
        union = np.unique(rng.integers(0, 2**64, size, np.uint64))
        assert len(union) == size
        common = int(overlap * size) + number % 3 - 1
        rest = rng.permutation(size)
        half = (size - common) // 2
        sets = [set(union[rest[: common + half]].tolist())]
        sets.append(set(union[np.append(rest[:common], rest[common + half :])].tolist()))
        one = np.zeros(2, np.int64)
        place = np.stack([np.arange(2)] * 2, axis=1).astype(np.uint64)
        found = Candidates(place, one, np.arange(2), np.arange(2), one)
        walked = walk_line(lined_up(found), *sets_of(sets), Comparison(False, 4, 5, 9))
        assert (walked.anchors[1] == 0) == (common * 5 >= 4 * size)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=25),
    st.integers(1, 40),
    st.lists(st.booleans(), min_size=25, max_size=25),
    st.integers(1, 9),
)
@settings(max_examples=200)
def test_components_are_those_of_the_graph_and_packages_hold_them_whole(keys, most, touched, step):
    n = len(keys)
    hashes = np.array(keys, np.uint64).T
    found = [shared_documents(band, np.arange(n)) for band in hashes]
    sizes = np.arange(n, dtype=np.int32)
    pieces = (band[max(0, i - 1) : i + step] for band in found for i in range(0, len(band), step))
    roots = components(pieces, np.array(touched[:n]))
    sums = weights(roots, ((i, sizes[i : i + step]) for i in range(0, n, step)))
    bounds = packages(sums, most)
    component = {i: {i} for i in range(n)}
    for i in range(n):
        for j in range(i):
            if any(a == b for a, b in zip(keys[i], keys[j], strict=True)):
                joined = component[i] | component[j]
                component |= dict.fromkeys(joined, joined)
    for i in range(n):
        unwanted = len(component[i]) == 1 or not any(touched[j] for j in component[i])
        assert roots[i] == (-1 if unwanted else min(component[i]))
    assert sums.tolist() == [sizes[roots == root].sum() for root in range(n)]
    for band in found:
        entries, starts = in_packages(band, roots, bounds)
        wanted = [
            [e for e in band if low <= roots[e >> 1] < high] for low, high in pairwise(bounds)
        ]
        assert [entries[a:b].tolist() for a, b in pairwise(starts)] == wanted
        assert starts[-1] == len(entries)
    assert bounds[0] == 0
    assert bounds[-1] == n
    for low, high in pairwise(bounds):
        inside = [i for i in range(n) if low <= roots[i] < high]
        heads = {int(roots[i]) for i in inside}
        assert (
            len(heads) <= 1
            or sum(sizes[i] for i in inside)
            - sizes[[i for i in inside if roots[i] == max(heads)]].sum()
            <= most
        )
