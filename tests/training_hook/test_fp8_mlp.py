import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training_hook.test_fp8 import RECIPES, error, layer_of, normal, three_products
from training_hook import fp8_emulation
from training_hook.fp8_emulation import squared_relu
from training_hook.fp8_mlp import fp8_squared_relu_mlp
from training_hook.fp8_scaling import SCALINGS
from training_hook.linear import FP8Linear

# the compiler's own use of what PyTorch deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


class Stack(torch.nn.Module):
    """An MLP, of one function or of its products and what stands between them."""

    def __init__(self, recipe: str, fused: bool) -> None:
        super().__init__()
        self.up, self.down, self.fused = layer_of(recipe), layer_of(recipe, 384, 128), fused

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.up, self.down
        if not (self.fused and isinstance(up, FP8Linear) and isinstance(down, FP8Linear)):
            return down(F.relu(up(x)).square())
        casts = up.cast(), down.cast()
        return fp8_squared_relu_mlp(x, up.weight, down.weight, *casts, up.recipe)


def special(dtype: torch.dtype) -> Tensor:
    values = [0.0, -0.0, 1.0, -1.0, 3e38, -3e38, 1e-30, torch.inf, -torch.inf, torch.nan]
    return torch.tensor(values, dtype=dtype)


@DTYPES
def test_squared_relu_is_that_of_autograd_bit_for_bit(dtype):
    for up, gradient in (
        (normal(64, 48).to(dtype), normal(64, 48, seed=1).to(dtype)),
        (special(dtype)[:, None].repeat(1, 10), special(dtype).repeat(10, 1)),
    ):
        leaf = up.clone().requires_grad_()
        wanted = F.relu(leaf).square()
        wanted.backward(gradient)
        torch.testing.assert_close(
            squared_relu(up, None), wanted.detach(), rtol=0, atol=0, equal_nan=True
        )
        torch.testing.assert_close(
            squared_relu(up, gradient), leaf.grad, rtol=0, atol=0, equal_nan=True
        )


@DTYPES
@pytest.mark.parametrize("recipe", RECIPES)
@settings(max_examples=20)
@given(factor=st.floats(2.0**-30, 2.0**30, width=32), shift=st.floats(-5, 5), seed=st.integers(0))
def test_cast_of_squared_relu_equals_cast_of_what_is_written(recipe, dtype, factor, shift, seed):
    scaling = SCALINGS[recipe]
    up = ((normal(128, 256, seed=seed % 2**31) + shift) * factor).to(dtype)
    gradient = normal(128, 256, seed=1).to(dtype)
    for found, wanted in (
        (scaling.squared_relu(up, None), scaling.input(squared_relu(up, None), None)),
        (
            scaling.squared_relu_gradient(gradient, up, None),
            scaling.gradient(squared_relu(up, gradient), None),
        ),
    ):
        assert found[1] is wanted[1] is None or found[1] == wanted[1]
        for ours, theirs in zip(found[0], wanted[0], strict=True):
            assert torch.equal(ours.float(), theirs.float())


@DTYPES
@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_mlp_equals_its_products_bit_for_bit(recipe, dtype):
    x, dy = normal(256, 256, seed=2).to(dtype), normal(256, 128, seed=3).to(dtype)
    fused, parts = (three_products(Stack(recipe, f), x, dy) for f in (True, False))
    assert [t.dtype for t in fused] == [dtype, dtype, torch.float32, torch.float32]
    for ours, theirs in zip(fused, parts, strict=True):
        assert torch.equal(ours, theirs)
    exact = three_products(Stack("plain", False).double(), x.double(), dy.double())
    assert all(0.03 < error(a, b) < 0.11 for a, b in zip(fused, exact, strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_mlp_compiled_whole_equals_eager(recipe):
    stack, x, dy = Stack(recipe, True), normal(128, 256), normal(128, 128)
    wanted = three_products(stack, x, dy)
    stack.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    for ours, theirs in zip(three_products(stack, x, dy), wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_mlp_keeps_no_square_in_bf16(recipe):
    stack, kept = Stack(recipe, True), {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stack(normal(1024, 256).bfloat16())
    # x and square in FP8, `up` in BF16, both weights in FP8, and scales
    values = 1024 * 256 + 1024 * 384 * 3 + 384 * 256 + 384 * 128
    assert values <= sum(kept.values()) < 1.06 * values


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_mlp_surfaces_what_is_not_finite(recipe):
    x, dy = normal(128, 256), normal(128, 128)
    x[5, 7] = torch.nan
    y, dx, by_up, by_down = three_products(Stack(recipe, True), x, dy)
    assert y[5].isnan().all()
    assert all(gradient.isnan().any() for gradient in (dx, by_up, by_down))


def test_fp8_mlp_of_tokens_that_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="got 192 tokens"):
        Stack("fp8_block", True)(normal(192, 256))


def test_emulated_squares_of_blocks_are_scaled_by_block():
    up = normal(128, 256)
    up[:, 128:] *= 1000
    _, scales, _, _ = fp8_emulation.cast_squared_relu_blocks(up, None)
    assert (scales[1] > 2**15 * scales[0]).all()
