import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training_hook.ssd import ssd

NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state")


def recurrence(x, dt, A, B, C, D, dt_bias, initial_state, document_ids) -> tuple[Tensor, Tensor]:
    """The definition, one position after the other."""
    batch, length, heads, _ = x.shape
    per_group = heads // B.shape[2]
    dt = F.softplus(dt + dt_bias)
    B, C = B.repeat_interleave(per_group, 2), C.repeat_interleave(per_group, 2)
    state, outputs = initial_state, []
    before = torch.zeros(batch, dtype=document_ids.dtype)
    for t in range(length):
        same = (document_ids[:, t] == before).to(x.dtype)[:, None, None, None]
        before = document_ids[:, t]
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        added = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        state = state * same * decay + added
        outputs.append((state * C[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(outputs, 1), state


def draw(seed: int, batch: int, length: int, heads: int, groups: int) -> dict[str, Tensor]:
    head_dim, state_size = 3, 5
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(batch, length, heads, head_dim),
        "dt": normal(batch, length, heads),
        "A": -16 * torch.rand(heads, generator=generator, dtype=torch.float64),
        "B": normal(batch, length, groups, state_size),
        "C": normal(batch, length, groups, state_size),
        "D": normal(heads),
        "dt_bias": normal(heads) - 2,
        "initial_state": normal(batch, heads, head_dim, state_size),
    }


def results(scan, tensors: dict[str, Tensor], weights: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Outputs of a scan, and gradients by all its tensors of a sum with fixed weights."""
    leaves = [tensors[name].clone().requires_grad_() for name in NAMES]
    y, final = scan(*leaves)
    loss = (y * weights[0].to(y.dtype)).sum() + (final * weights[1].to(final.dtype)).sum()
    gradients = torch.autograd.grad(loss, leaves)
    return {"y": y, "final": final, **dict(zip(NAMES, gradients, strict=True))}


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in wanted.items():
        error = (got[name].double() - tensor).abs().max() / tensor.abs().max().clamp(min=1)
        assert error < tolerance, f"{name} differs by {error}"


def weights_for(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(tensors[name].shape, generator=generator, dtype=torch.float64)
        for name in ("x", "initial_state")
    )


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 2),
    length=st.integers(1, 40),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    chunk_size=st.sampled_from([1, 2, 7, 8, 16, 64]),
    boundary_rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_ssd_any_shape_equals_recurrence(
    seed, batch, length, groups, per_group, chunk_size, boundary_rate
):
    tensors = draw(seed, batch, length, groups * per_group, groups)
    weights = weights_for(tensors)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(batch, length, generator=generator) < boundary_rate
    ids = starts.int().cumsum(1)

    def chunked(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return ssd(*leaves[:7], chunk_size, ids, leaves[7])

    wanted = results(lambda *leaves: recurrence(*leaves, ids), tensors, weights)
    assert_close(results(chunked, tensors, weights), wanted, 1e-10)
    single = {name: tensor.float() for name, tensor in tensors.items()}
    assert_close(results(chunked, single, weights), wanted, 1e-4)


def test_ssd_without_documents_or_state_equals_one_document_from_zero():
    tensors = draw(0, 2, 21, 4, 2)
    inputs = [tensors[name] for name in NAMES[:7]]
    plain, final = ssd(*inputs, 8)
    ids = torch.zeros(2, 21, dtype=torch.int32)
    wanted, wanted_final = recurrence(*inputs, torch.zeros_like(final), ids)
    torch.testing.assert_close(plain, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(final, wanted_final, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cut", [1, 8, 13, 20])
def test_ssd_state_passed_between_pieces_equals_whole(cut):
    tensors = draw(3, 2, 21, 4, 2)
    initial = tensors["initial_state"]
    along = ("x", "dt", "B", "C")

    def piece(rows: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        inputs = [tensors[n][:, rows] if n in along else tensors[n] for n in NAMES[:7]]
        return ssd(*inputs, 8, None, state)

    whole, final = piece(slice(None), initial)
    first, state = piece(slice(None, cut), initial)
    second, last = piece(slice(cut, None), state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(last, final, rtol=0, atol=1e-10)


def test_ssd_steps_far_apart_in_size_keep_gradients_finite():
    tensors = draw(5, 1, 64, 4, 2)
    tensors["dt"] = tensors["dt"] * 40  # softplus from 1e-30 to 100, decays down to exp(-1e5)
    single = {name: tensor.float() for name, tensor in tensors.items()}
    ids = torch.zeros(1, 64, dtype=torch.int32)
    got = results(
        lambda *leaves: ssd(*leaves[:7], 16, ids, leaves[7]), single, weights_for(tensors)
    )
    for name, tensor in got.items():
        assert torch.isfinite(tensor).all(), name


def test_ssd_bf16_inputs_keep_state_in_float32():
    tensors = draw(7, 2, 32, 4, 2)
    low = {name: tensors[name].to(torch.bfloat16) for name in ("x", "dt", "B", "C")}
    inputs = {**{name: t.float() for name, t in tensors.items()}, **low}
    y, final = ssd(*[inputs[name] for name in NAMES[:7]], 8)
    exact, _ = ssd(*[inputs[name].double() for name in NAMES[:7]], 8)
    assert y.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    assert (y - exact).abs().max() < 0.02 * exact.abs().max()


def test_ssd_compiled_without_graph_breaks_equals_eager():
    tensors = draw(9, 2, 24, 4, 2)
    weights = weights_for(tensors)
    ids = (torch.arange(24) // 7).int().expand(2, -1).contiguous()

    def chunked(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return ssd(*leaves[:7], 8, ids, leaves[7])

    compiled = torch.compile(chunked, backend="aot_eager", fullgraph=True, dynamic=False)
    assert_close(results(compiled, tensors, weights), results(chunked, tensors, weights), 1e-12)
