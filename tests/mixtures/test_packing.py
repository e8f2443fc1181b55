import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.packing import CONTINUATION, START_BITS, WINDOW, Packer, best_fit, cut

documents = st.lists(st.integers(1, 60), min_size=1, max_size=80)
quiet = settings(max_examples=80)


def pack(
    lengths: list[int], sequence_length: int, max_documents: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns locations, lengths and pieces of each pack of one shard's documents."""
    parts: list[tuple] = []
    packer = Packer(sequence_length, max_documents, lambda *arrays: parts.append(arrays))
    length = np.array(lengths, np.int32)
    packer.add(*cut(np.cumsum(length, dtype=np.int64) - length, length, 0, sequence_length))
    packer.finish()
    locations, sizes, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    return locations, sizes, counts


@quiet
@given(lengths=documents, sequence_length=st.integers(2, 70), shard=st.integers(0, (1 << 20) - 1))
def test_cut_makes_every_token_a_target_once(
    lengths: list[int], sequence_length: int, shard: int
) -> None:
    length = np.array(lengths, np.int32)
    start = np.cumsum(length, dtype=np.int64) - length + (1 << 40)
    locations, sizes = cut(start, length, shard, sequence_length)
    assert (((locations & ~CONTINUATION) >> np.uint64(START_BITS)) == shard).all()
    firsts = (locations & np.uint64((1 << START_BITS) - 1)).astype(np.int64)
    continues = (locations & CONTINUATION) != 0
    assert sizes.max() <= sequence_length + 1
    targets = np.concatenate(
        [np.arange(f + c, f + n) for f, n, c in zip(firsts, sizes, continues, strict=True)]
    )
    wanted = [np.arange(s, s + n) for s, n in zip(start, length, strict=True)]
    assert targets.tolist() == np.concatenate(wanted).tolist()
    begins = firsts[~continues]
    assert begins.tolist() == start.tolist()


@quiet
@given(lengths=documents, sequence_length=st.integers(4, 70), max_documents=st.integers(1, 9))
def test_pack_holds_every_piece_once_and_keeps_its_limits(
    lengths: list[int], sequence_length: int, max_documents: int
) -> None:
    locations, sizes, counts = pack(lengths, sequence_length, max_documents)
    length = np.array(lengths, np.int32)
    pieces = cut(np.cumsum(length, dtype=np.int64) - length, length, 0, sequence_length)
    assert sorted(zip(locations.tolist(), sizes.tolist(), strict=True)) == sorted(
        zip(pieces[0].tolist(), pieces[1].tolist(), strict=True)
    )
    assert counts.sum() == len(sizes)
    assert counts.min() >= 1
    assert counts.max() <= max_documents
    first = np.cumsum(counts) - counts
    assert np.add.reduceat(sizes, first).max() <= sequence_length + 1
    for begin, count in zip(first, counts, strict=True):
        places = locations[begin : begin + count] & ~CONTINUATION
        assert (np.diff(places.astype(np.int64)) > 0).all()


@quiet
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=120))
def test_best_fit_agrees_with_a_plain_one(lengths: list[int]) -> None:
    length = np.array(lengths, np.int32)
    packs, num_packs = best_fit(length, np.argsort(-length, kind="stable"), 20, 64)
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [place for place in free if place >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(20 - length)
    filled = np.bincount(packs, lengths, num_packs)
    assert sorted(20 - filled) == sorted(free)


def test_pack_of_web_like_lengths_wastes_little() -> None:
    rng = np.random.default_rng(0)
    lengths = np.maximum(2, rng.lognormal(6.2, 1.1, 40_000)).astype(int).tolist()
    for sequence_length in (512, 4096):
        _, sizes, counts = pack(lengths, sequence_length, 64)
        assert sizes.sum() / (len(counts) * (sequence_length + 1)) > 0.995


def test_pack_of_pieces_that_never_fit_together_goes_on() -> None:
    """Pieces a little over half a pack wait for small ones, but no more than a window of them."""
    emitted: list[int] = []
    packer = Packer(100, 64, lambda _, lengths, counts: emitted.append(len(counts)))
    for _ in range(5):
        locations, lengths = cut(
            np.arange(WINDOW, dtype=np.int64) * 60, np.full(WINDOW, 60, np.int32), 0, 100
        )
        packer.add(locations, lengths)
    assert sum(emitted) == 4 * WINDOW
    packer.finish()
    assert sum(emitted) == 5 * WINDOW
