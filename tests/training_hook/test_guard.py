import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training_hook.test_pretrain import batch_with_mask, fresh_model, host_batch, tiny_run
from training_hook.guard import JUDGED_FROM, WINDOW, Guard
from training_hook.optimizer import MOMENTS, adamw, set_learning_rate
from training_hook.step import train_step

CPU = torch.device("cpu")
NORMS = st.floats(0.125, 64, width=32) | st.sampled_from([np.inf, np.nan])


def judged(guard: Guard, norms: list[float]) -> list[bool]:
    return [bool(guard.judge(torch.tensor(1.0), torch.tensor(norm))) for norm in norms]


def expected(norms: list[float], factor: float) -> list[bool]:
    made: list[float] = []
    bad = []
    for norm in norms:
        recent = np.float32(sorted(made[-WINDOW:]))
        spike = False
        if factor and len(made) >= JUDGED_FROM:
            bound = torch.tensor(recent[(len(recent) - 1) // 2]) * factor  # torch's lower median
            spike = bool(norm > bound)
        bad.append(not np.isfinite(norm) or spike)
        if not bad[-1]:
            made.append(norm)
    return bad


@given(
    norms=st.lists(NORMS, max_size=60),
    factor=st.sampled_from([0.0, 1.5, 4.0]),
    times=st.integers(1, 4),
)
def test_guard_leaves_out_what_is_not_finite_or_a_spike(norms, factor, times):
    norms = norms * times
    assert judged(Guard(factor, CPU), norms) == expected(norms, factor)


@given(norms=st.lists(NORMS, max_size=200), cut=st.integers(0, 200))
def test_guard_goes_on_from_its_state(norms, cut):
    whole, first, second = (Guard(2.0, CPU) for _ in range(3))
    judged(first, norms[:cut])
    second.load_state_dict(first.state_dict())
    assert judged(whole, norms)[cut:] == judged(second, norms[cut:])
    assert whole.state_dict() == second.state_dict()


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_loss_that_is_not_finite_is_left_out_whatever_the_norm(loss):
    assert Guard(0.0, CPU).judge(torch.tensor(loss), torch.tensor(1.0)) == 1


def test_step_that_is_left_out_changes_nothing():
    model = fresh_model()
    optimizer = adamw(model, (0.9, 0.95), 1e-8, 0.1)
    set_learning_rate(optimizer, 1e-2)
    guard = Guard(0.0, CPU)
    batch = host_batch(batch_with_mask(4, 0), {}, pin=False)
    assert not train_step(model, optimizer, guard, batch, tiny_run()).skipped
    kept = [p.detach().clone() for p in model.parameters()]
    moments = [{k: v.clone() for k, v in s.items()} for s in optimizer.state.values()]
    with torch.no_grad():
        poisoned = model.lm_head.weight[7, 3].clone()
        model.lm_head.weight[7, 3] = torch.nan
    result = train_step(model, optimizer, guard, batch, tiny_run())
    assert result.skipped == 1
    assert result.loss.isnan()
    with torch.no_grad():
        model.lm_head.weight[7, 3] = poisoned
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
    for before, after in zip(moments, optimizer.state.values(), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in (*MOMENTS, "step"))
    assert guard.made == 1
