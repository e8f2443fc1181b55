import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_hook.schedule import DECAY_SHAPES, WarmupStableDecay


def schedule(**changes) -> WarmupStableDecay:
    given = {
        "peak": 1e-3,
        "total_steps": 100,
        "warmup_share": 0.1,
        "decay_share": 0.2,
        "decay_shape": "linear",
        "min_ratio": 0.01,
    }
    return WarmupStableDecay(**{**given, **changes})


def test_learning_rate_at_the_corners_is_exact():
    wsd = schedule()
    assert wsd.learning_rate(1) == pytest.approx(1e-4)
    assert wsd.learning_rate(9) == pytest.approx(9e-4)
    assert wsd.learning_rate(10) == 1e-3
    assert wsd.learning_rate(80) == 1e-3
    assert wsd.learning_rate(81) < 1e-3
    assert wsd.learning_rate(90) == pytest.approx(1e-3 * (1 - 0.99 * 0.5))
    assert wsd.learning_rate(100) == pytest.approx(1e-5)


def test_learning_rate_minus_sqrt_is_half_way_down_after_a_quarter():
    wsd = schedule(decay_shape="minus_sqrt")
    assert wsd.learning_rate(85) == pytest.approx(1e-3 * (1 - 0.99 * math.sqrt(0.25)))
    assert wsd.learning_rate(100) == pytest.approx(1e-5)


def test_learning_rate_of_a_single_step_is_the_peak():
    assert schedule(total_steps=1).learning_rate(1) == 1e-3


def test_learning_rate_without_warmup_starts_at_the_peak():
    assert schedule(warmup_share=0.0).learning_rate(1) == 1e-3


def test_learning_rate_without_decay_ends_at_the_peak():
    assert schedule(decay_share=0.0).learning_rate(100) == 1e-3


@pytest.mark.parametrize("step", [0, -1, 101])
def test_learning_rate_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match="wanted 1 to 100"):
        schedule().learning_rate(step)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak": 0.0}, "peak is 0"),
        ({"peak": math.nan}, "peak is nan"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"warmup_share": -0.1}, "warmup_share is -0.1"),
        ({"min_ratio": 1.5}, "min_ratio is 1.5"),
        ({"warmup_share": 0.6, "decay_share": 0.6}, "more than the whole run"),
        ({"decay_shape": "square"}, "wanted one of: linear, minus_sqrt, cosine"),
    ],
)
def test_schedule_with_wrong_settings_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        schedule(**changes)


@settings(max_examples=200)
@given(
    total=st.integers(1, 400),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    shape=st.sampled_from(DECAY_SHAPES),
    ratio=st.floats(0, 1),
)
def test_learning_rate_rises_stays_and_falls(total, warmup, decay, shape, ratio):
    wsd = WarmupStableDecay(2.0, total, warmup, decay, shape, ratio)
    rates = [wsd.learning_rate(step) for step in range(1, total + 1)]
    up, down = wsd.warmup_steps, total - wsd.decay_steps
    assert all(0 <= rate <= 2.0 for rate in rates)
    assert rates[:up] == sorted(rates[:up])
    assert set(rates[up:down]) <= {2.0}
    assert rates[down:] == sorted(rates[down:], reverse=True)
    if wsd.decay_steps:
        assert rates[-1] == pytest.approx(2.0 * ratio)
