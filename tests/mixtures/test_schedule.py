import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures import schedule as module
from mixtures.schedule import BLOCK, CYCLE, Schedule, apportion, make_schedule, quota

quiet = settings(max_examples=60)
weights = st.lists(st.floats(0.001, 1), min_size=1, max_size=6)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    num_parts = draw(st.integers(1, 5))
    phases = draw(st.integers(1, 3))
    rows = [
        draw(st.lists(st.floats(0, 1), min_size=num_parts, max_size=num_parts))
        for _ in range(phases)
    ]
    for row in rows:
        row[draw(st.integers(0, num_parts - 1))] = 1.0
    return make_schedule(
        [apportion(row, CYCLE) for row in rows],
        draw(st.lists(st.integers(0, 1500), min_size=phases, max_size=phases)),
        draw(st.lists(st.integers(1, 400), min_size=num_parts, max_size=num_parts)),
        [f"part {number}" for number in range(num_parts)],
        draw(st.integers(0, 1 << 40)),
    )


@quiet
@given(shares=weights, total=st.integers(0, 10_000))
def test_apportion_adds_up_and_is_within_one(shares: list[float], total: int) -> None:
    counts = apportion(shares, total)
    assert sum(counts) == total
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - share / sum(shares) * total) < 1 + 1e-6


@quiet
@given(shares=weights)
def test_quota_is_within_one_sample_at_every_prefix(shares: list[float]) -> None:
    in_cycle = np.array(apportion(shares, CYCLE), np.int64)
    positions = np.arange(3000)
    table = quota(in_cycle, positions)
    assert (table.sum(1) == positions).all()
    assert (np.diff(table, axis=0) >= 0).all()
    assert (np.abs(table - in_cycle / CYCLE * positions[:, None]) < 1).all()


@quiet
@given(schedule=schedules())
def test_locate_keeps_weights_and_sees_every_pack_once_an_epoch(schedule: Schedule) -> None:
    parts, epochs, packs = schedule.locate(np.arange(schedule.num_samples))
    for part, count in enumerate(schedule.num_packs):
        draws = epochs[parts == part] * count + packs[parts == part]
        total = schedule.base[-1, part]
        assert len(draws) == total == len(set(draws.tolist()))
        assert (np.bincount(draws // count, minlength=1)[: total // count] == count).all()
    for phase in range(len(schedule.starts) - 1):
        start, stop = schedule.starts[phase : phase + 2]
        in_cycle = schedule.table[phase, -1] if stop - start >= CYCLE else None
        assert in_cycle is None
        counts = np.bincount(parts[start:stop], minlength=len(schedule.num_packs))
        assert counts.tolist() == schedule.draws[phase].tolist()
        for block in range((stop - start) // BLOCK):
            begin = start + block * BLOCK
            found = np.bincount(parts[begin : begin + BLOCK], minlength=len(schedule.num_packs))
            wanted = schedule.table[phase, block + 1] - schedule.table[phase, block]
            assert found.tolist() == wanted.tolist()


@quiet
@given(schedule=schedules(), data=st.data())
def test_index_of_undoes_locate(schedule: Schedule, data: st.DataObject) -> None:
    if not schedule.num_samples:
        return
    index = data.draw(st.integers(0, schedule.num_samples - 1))
    part, epoch, pack = (int(found[0]) for found in schedule.locate(np.array([index])))
    assert schedule.index_of(part, epoch, pack) == index


@quiet
@given(
    schedule=schedules(), part=st.integers(0, 4), epoch=st.integers(0, 30), share=st.floats(0, 1)
)
def test_index_of_what_never_comes_is_minus_one(
    schedule: Schedule, part: int, epoch: int, share: float
) -> None:
    part %= len(schedule.num_packs)
    pack = int(share * (schedule.num_packs[part] - 1))
    index = schedule.index_of(part, epoch, pack)
    parts, epochs, packs = schedule.locate(np.arange(schedule.num_samples))
    (found,) = np.nonzero((parts == part) & (epochs == epoch) & (packs == pack))
    assert found.tolist() == ([] if index < 0 else [index])


def test_schedule_repeats_after_a_cycle_in_another_order() -> None:
    in_cycle = apportion([0.7, 0.2999, 0.0001], CYCLE)
    schedule = make_schedule([in_cycle], [2 * CYCLE + 300], [1000, 50, 7], ["a", "b", "c"], 5)
    assert schedule.base[1].tolist() == (2 * np.array(in_cycle) + schedule.tail[0]).tolist()
    first, second = (schedule.locate(np.arange(s, s + 4096))[0] for s in (0, CYCLE))
    assert np.bincount(first, minlength=3).tolist() == np.bincount(second, minlength=3).tolist()
    assert first.tolist() != second.tolist()
    for index in (0, CYCLE - 1, CYCLE, 2 * CYCLE - 1, 2 * CYCLE, 2 * CYCLE + 299):
        part, epoch, pack = (int(found[0]) for found in schedule.locate(np.array([index])))
        assert schedule.index_of(part, epoch, pack) == index


def test_schedule_depends_on_the_seed_and_the_names() -> None:
    def order(name: str, seed: int) -> list[int]:
        schedule = make_schedule([[CYCLE]], [100], [100], [name], seed)
        return schedule.locate(np.arange(100))[2].tolist()

    assert order("a", 0) == order("a", 0)
    assert order("a", 0) != order("a", 1)
    assert order("a", 0) != order("b", 0)


def test_epochs_have_orders_of_their_own() -> None:
    schedule = make_schedule([[CYCLE]], [6 * BLOCK], [2 * BLOCK], ["a"], 0)
    _, epochs, packs = schedule.locate(np.arange(6 * BLOCK))
    assert epochs.tolist() == np.repeat([0, 1, 2], 2 * BLOCK).tolist()
    # which packs the first half of an epoch holds, whatever their order in the block
    halves = {
        frozenset(packs[start : start + BLOCK].tolist()) for start in range(0, 6 * BLOCK, 512)
    }
    assert len(halves) == 3


@pytest.mark.parametrize("block", [1, 255, 256, 257, 1000])
def test_locate_ends_where_the_mixture_ends(block: int) -> None:
    schedule = make_schedule([[CYCLE // 2, CYCLE // 2]], [block], [10, 10], ["a", "b"], 0)
    parts, _, _ = schedule.locate(np.arange(block))
    assert abs((parts == 0).sum() - block / 2) < 1
    assert module.BLOCK == 256
