import shutil
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtures.stream import Stream
from tests.training_hook.test_pretrain import LENGTH, assert_same_run, corpus, tiny_run
from training_hook.batch_sizes import BatchSizes
from training_hook.metrics import read_metrics
from training_hook.pretrain import pretrain

RAMP = ((0.1, 2), (0.4, 4))
__all__ = ["corpus"]  # a fixture of this module, too


@given(
    st.integers(1, 5_000),
    st.integers(1, 7),
    st.integers(1, 9),
    st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(1, 9)), max_size=3),
)
def test_batches_follow_one_another_until_the_tokens_are_seen(tokens, length, size, ramp):
    ramp.sort()
    batches = BatchSizes(tokens, length, size, ramp)
    sizes = [batches.of(step) for step in range(1, batches.total_steps + 1)]
    assert [0, *accumulate(sizes)] == [batches.samples(n) for n in range(len(sizes) + 1)]
    assert batches.tokens(len(sizes)) >= tokens > batches.tokens(len(sizes) - 1)
    for step, found in enumerate(sizes):  # decided by what was seen before
        wanted = [s for share, s in ramp if batches.tokens(step) < int(share * tokens)]
        assert found == (wanted[0] if wanted else size)


def test_stream_takes_batches_of_any_size(corpus):
    stream, reference = Stream(corpus / "mixture", 4), Stream(corpus / "mixture", 12)
    wanted = next(reference)
    taken = [stream.take(size) for size in (2, 4, 6)]
    assert np.array_equal(np.concatenate([batch.tokens for batch in taken]), wanted.tokens)
    assert stream.state_dict() == reference.state_dict()
    ranks = [Stream(corpus / "mixture", 4, rank, 2) for rank in (0, 1)]
    rows = np.concatenate([stream.take(6).tokens for stream in ranks])
    assert np.array_equal(rows, wanted.tokens[:6])
    with pytest.raises(ValueError, match="batch_size 3 does not divide by world_size 2"):
        ranks[0].take(3)
    assert Stream(corpus / "mixture", 4, start=stream.num_samples - 3).take(4) is None


def test_run_with_a_ramp_resumes_bit_for_bit(corpus, tmp_path):
    run = tiny_run(batch_size=8, batch_ramp=RAMP, total_tokens=160 * LENGTH)
    whole = pretrain(run, corpus / "mixture", tmp_path / "whole")
    steps = read_metrics(tmp_path / "whole")
    sizes = steps["samples"].to_pylist()
    assert sizes == [2] * 8 + [4] * 12 + [8] * 12
    assert steps["first_sample"].to_pylist() == [0, *accumulate(sizes)][:-1]
    assert steps["tokens"].to_pylist() == [LENGTH * samples for samples in accumulate(sizes)]
    assert whole["tokens"] == 160 * LENGTH
    often = replace(run, checkpoint_interval=9, keep_last=9)
    pretrain(often, corpus / "mixture", tmp_path / "cut")
    for step in (27, 32):  # back to step 18, inside the ramp
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:08d}")
    (tmp_path / "cut" / "manifest.json").unlink()
    assert pretrain(often, corpus / "mixture", tmp_path / "cut")["status"] == "finished"
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_run_with_a_ramp_and_other_lengths():
    run = tiny_run(batch_size=8, batch_ramp=RAMP, total_tokens=160 * LENGTH)
    assert run.total_steps == 32
    assert [run.with_steps(steps).total_steps for steps in (32, 64, 100)] == [32, 64, 100]
    assert 1 <= run.with_steps(2).total_steps <= 2
    assert run.fingerprint() != replace(run, batch_ramp=()).fingerprint()


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        (((0.5, 2), (0.2, 4)), "wanted ascending ones between 0 and 1"),
        (((1.0, 2),), "wanted ascending ones between 0 and 1"),
        (((0.5, 3),), r"batches of \[3\] sequences; wanted multiples of micro_batch_size 2"),
        (((0.5, 10),), "up to batch_size 8"),
    ],
)
def test_run_with_a_wrong_ramp_is_refused(ramp, message):
    with pytest.raises(ValueError, match=message):
        tiny_run(batch_size=8, batch_ramp=ramp)
