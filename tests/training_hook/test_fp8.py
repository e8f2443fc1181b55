import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training_hook import fp8_emulation
from training_hook.fp8_emulation import E4M3, E5M2, power_of_two_scale
from training_hook.kernels import fp8_operators
from training_hook.linear import FP8Linear, Linear, make_linear

# the compiler's own use of what PyTorch deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

RECIPES = ("fp8_tensor", "fp8_tensor_e4m3", "fp8_delayed", "fp8_block")
FORMATS = pytest.mark.parametrize(
    ("dtype", "largest"), [(E4M3, 448.0), (E5M2, 57_344.0)], ids=["e4m3", "e5m2"]
)
# of Gaussian operands: a rounding error of 2^-4 at most (E5M2: 2^-3), spread over an octave, twice
E4M3_ERROR, E5M2_ERROR = (0.035, 0.040), (0.055, 0.062)
positive = st.floats(2.0**-140, 2.0**127, width=32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(recipe: str, in_features: int = 256, out_features: int = 384) -> Linear:
    layer = make_linear(in_features, out_features, recipe)
    with torch.no_grad():
        layer.reset_parameters(0.05, torch.Generator().manual_seed(1))
    return layer


def three_products(layer: torch.nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients by the input and by the weight."""
    x = x.detach().requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), dy)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@FORMATS
@settings(max_examples=25)
@given(amax=positive)
def test_scale_is_the_smallest_power_of_two_that_fits(dtype, largest, amax):
    scale = power_of_two_scale(torch.tensor(amax), dtype)
    mantissa, _ = torch.frexp(scale)
    assert mantissa == 0.5
    assert amax / scale.item() <= largest
    assert amax / scale.item() > largest / 2 or scale == torch.finfo(torch.float32).tiny


@FORMATS
def test_scale_of_zero_is_one_and_of_what_is_not_finite_nan(dtype, largest):
    amax = torch.tensor([0.0, torch.inf, torch.nan, largest, 2 * largest])
    scales = power_of_two_scale(amax, dtype)
    assert scales[0] == 1
    assert scales[1:3].isnan().all()
    assert scales[3:].tolist() == [1, 2]


@FORMATS
@settings(max_examples=25)
@given(factor=st.floats(2.0**-60, 2.0**60, width=32), seed=st.integers(0, 1_000))
def test_cast_rounds_to_the_nearest_value_of_the_format(dtype, largest, factor, seed):
    x = normal(32, 48, seed=seed) * factor
    cast, transposed, scale = fp8_operators.cast_tensor(x, x.abs().amax(), dtype)
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    values = codes[codes.isfinite()].unique()
    exact = x.double() / scale.double()
    nearest = (exact[..., None] - values).abs().amin(-1)
    assert torch.equal((exact - cast.double()).abs(), nearest)
    # half-way values go to the even code, as hardware rounds
    middle = (values[1:] + values[:-1]) / 2
    odd = middle.float().to(dtype).view(torch.uint8) & 1
    assert not odd.any()
    assert torch.equal(transposed.view(torch.uint8), cast.view(torch.uint8).t())


def test_cast_blocks_scales_each_128_values_on_their_own():
    x = normal(256, 384) * torch.exp(3 * normal(256, 384, seed=1))
    by_row, row_scales, by_column, column_scales = fp8_operators.cast_blocks(x)
    rows = power_of_two_scale(x.unflatten(1, (3, 128)).abs().amax(2), E4M3)
    columns = power_of_two_scale(x.unflatten(0, (2, 128)).abs().amax(1), E4M3)
    assert torch.equal(row_scales, rows.t())
    assert torch.equal(column_scales, columns)
    for cast, scales, wanted in ((by_row, rows, x), (by_column, columns.t(), x.t())):
        assert cast.is_contiguous()
        widened = cast.float() * scales.repeat_interleave(128, 1)
        assert ((widened - wanted).abs() <= 2.0**-4 * wanted.abs() + 2.0**-10 * widened.max()).all()
        assert error(widened, wanted.double()) < 0.035


def test_cast_squares_scales_each_square_and_pads_to_four():
    x = normal(256, 640) * torch.arange(1, 6).repeat_interleave(128).exp2()
    cast, scales, transposed, transposed_scales = fp8_operators.cast_squares(x)
    assert scales.shape == (2, 8)
    assert transposed_scales.shape == (5, 4)
    assert torch.equal(scales[:, :5], transposed_scales[:, :2].t())
    assert (scales[:, 5:] == 1).all()
    widened = cast.float() * scales[:, :5].repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert error(widened, x.double()) < 0.03
    assert torch.equal(transposed.view(torch.uint8), cast.view(torch.uint8).t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_products_have_the_error_of_their_format(recipe, dtype):
    layer = layer_of(recipe)
    x, dy = normal(512, 256, seed=2).to(dtype), normal(512, 384, seed=3).to(dtype)
    found = three_products(layer, x, dy)
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32]
    weight = layer.weight.detach().double()
    wanted = (x.double() @ weight.T, dy.double() @ weight, dy.double().T @ x.double())
    gradients = E5M2_ERROR if recipe in ("fp8_tensor", "fp8_delayed") else E4M3_ERROR
    bounds = zip(found, wanted, (E4M3_ERROR, gradients, gradients), strict=True)
    for ours, exact, (low, high) in bounds:
        assert low < error(ours, exact) < high


@pytest.mark.parametrize("recipe", RECIPES)
@settings(max_examples=25)
@given(power=st.integers(-30, 30))
def test_fp8_products_scale_exactly_by_powers_of_two(recipe, power):
    layer = layer_of(recipe, 128, 128)
    x, dy = normal(128, 128, seed=2), normal(128, 128, seed=3)
    y, dx, dw = three_products(layer, x, dy)
    scaled = three_products(layer, torch.ldexp(x, torch.tensor(power)), dy)
    assert torch.equal(scaled[0], torch.ldexp(y, torch.tensor(power)))
    assert torch.equal(scaled[1], dx)
    assert torch.equal(scaled[2], torch.ldexp(dw, torch.tensor(power)))


def test_fp8_block_outlier_coarsens_only_its_block():
    x, outlier = normal(256, 256), normal(256, 256)
    outlier[3, 200] = 1e6
    dy = normal(256, 128, seed=3)
    products = {recipe: layer_of(recipe, 256, 128) for recipe in RECIPES}
    wide = {r: three_products(layer, outlier, dy) for r, layer in products.items()}
    plain = {r: three_products(layer, x, dy) for r, layer in products.items()}
    others = torch.arange(256) != 3
    assert torch.equal(wide["fp8_block"][0][others], plain["fp8_block"][0][others])
    exact = (x.double() @ products["fp8_tensor"].weight.detach().double().T)[others]
    assert error(wide["fp8_tensor"][0][others], exact) > 0.9  # all else went to zero


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_zeros_give_zeros(recipe):
    layer = layer_of(recipe)
    x, dy = normal(128, 256), normal(128, 384)
    y, dx, dw = three_products(layer, torch.zeros_like(x), dy)
    assert not y.any()
    assert not dw.any()
    assert dx.any()
    y, dx, dw = three_products(layer, x, torch.zeros_like(dy))
    assert y.any()
    assert not dx.any()
    assert not dw.any()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_operand_that_is_not_finite_surfaces(recipe, bad):
    x, dy = normal(128, 256), normal(128, 384)
    broken = x.clone()
    broken[5, 7] = bad
    y, _, dw = three_products(layer_of(recipe), broken, dy)
    assert y[5].isnan().all()
    assert dw[:, 7].isnan().all()
    layer = layer_of(recipe)
    with torch.no_grad():
        layer.weight[9, 7] = bad
    y, dx, _ = three_products(layer, x, dy)
    assert y[:, 9].isnan().all()
    assert dx[:, 7].isnan().all()
    broken = dy.clone()
    broken[5, 9] = bad
    _, dx, dw = three_products(layer_of(recipe), x, broken)
    assert dx[5].isnan().all()
    assert dw[9].isnan().all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_layer_is_plain_without_gradients_and_when_told(recipe):
    layer, plain = layer_of(recipe), layer_of("plain")
    assert isinstance(layer, FP8Linear)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    x, dy = normal(128, 256), normal(128, 384)
    with torch.no_grad():
        assert torch.equal(layer(x[:3]), plain(x[:3]))
    assert not torch.equal(layer(x), plain(x))
    layer.low_precision = False
    for a, b in zip(three_products(layer, x, dy), three_products(plain, x, dy), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_layer_compiled_whole_equals_eager_and_switches(recipe):
    class Block(torch.nn.Module):
        """What stands around a product in a model: something fused before and after it."""

        def __init__(self, recipe: str) -> None:
            super().__init__()
            self.up = layer_of(recipe)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.up(2 * x)).square()

    block = Block(recipe)
    x, dy = normal(128, 256), normal(128, 384)
    low = three_products(block, x, dy)
    block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    for a, b in zip(three_products(block, x, dy), low, strict=True):
        assert torch.equal(a, b)
    assert isinstance(block.up, FP8Linear)
    block.up.low_precision = False
    high = three_products(Block("plain"), x, dy)
    for a, b in zip(three_products(block, x, dy), high, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("recipe", ["fp8_tensor", "fp8_block"])
def test_fp8_layer_with_plain_rows_is_two_products(recipe):
    layer = make_linear(256, 440, recipe, plain_rows=56)
    assert isinstance(layer, FP8Linear)
    assert (layer.plain_rows, layer.weight.shape) == (56, (440, 256))
    low, plain = layer_of(recipe), make_linear(256, 56, "plain")
    with torch.no_grad():
        layer.reset_parameters(0.05, torch.Generator().manual_seed(1))
        low.weight.copy_(layer.weight[:384])
        plain.weight.copy_(layer.weight[384:])
    x, dy = normal(128, 256).bfloat16(), normal(128, 440).bfloat16()
    y, dx, dw = three_products(layer, x, dy)
    low_y, low_dx, low_dw = three_products(low, x, dy[:, :384])
    plain_y, plain_dx, plain_dw = three_products(plain, x, dy[:, 384:])
    assert torch.equal(y, torch.cat([low_y, plain_y], 1))
    assert torch.equal(dx, low_dx + plain_dx)
    assert torch.equal(dw, torch.cat([low_dw, plain_dw]))
    assert [part.shape[1] for part in layer.forward_parts(x)] == [384, 56]
    layer.low_precision = False
    assert [part.shape[1] for part in layer.forward_parts(x)] == [440]


def test_make_linear_keeps_rows_plain_only_where_it_must():
    divides = make_linear(128, 256, "fp8_block", plain_rows=128)
    assert isinstance(divides, FP8Linear)
    assert divides.plain_rows == 0
    assert type(make_linear(128, 320, "plain", plain_rows=64)) is Linear
    with pytest.raises(ValueError, match="out_features 280"):
        make_linear(128, 320, "fp8_block", plain_rows=40)


def test_fp8_operators_are_sound_for_the_compiler():
    x, w = normal(256, 128), normal(384, 128, seed=1)
    amax = x.abs().amax()
    cast, _, scale = fp8_operators.cast_tensor(x, amax, E4M3)
    w_cast, _, w_scale = fp8_operators.cast_tensor(w, w.abs().amax(), E4M3)
    rows, row_scales, columns, column_scales = fp8_operators.cast_blocks(x)
    squares, square_scales, _, _ = fp8_operators.cast_squares(w)
    calls = [
        (fp8_operators.cast_tensor, (x, amax, E5M2)),
        (fp8_operators.cast_blocks, (x,)),
        (fp8_operators.cast_squares, (w,)),
        (fp8_operators.cast_squared_relu_tensor, (x, None, amax, E4M3)),
        (fp8_operators.cast_squared_relu_tensor, (x, x, amax, E5M2)),
        (fp8_operators.cast_squared_relu_blocks, (x, None)),
        (fp8_operators.cast_squared_relu_blocks, (x, x)),
        (fp8_operators.cast_expected, (x, False, None, amax, E4M3)),
        (fp8_operators.cast_expected, (x, True, x, amax, E5M2)),
        (fp8_operators.multiply_tensor, (cast, w_cast, scale, w_scale, torch.bfloat16, True)),
        (
            fp8_operators.multiply_blocks,
            (rows, squares, row_scales, square_scales, True, torch.bfloat16),
        ),
        (
            fp8_operators.multiply_blocks,
            (columns, columns, column_scales, column_scales, False, torch.float32),
        ),
    ]
    for operator, arguments in calls:
        # its schema test multiplies FP8 numbers, which the CPU cannot
        tests = ("test_autograd_registration", "test_faketensor")
        found = torch.library.opcheck(operator, arguments, test_utils=tests)
        assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [("fp8_tensor", (24, 16)), ("fp8_tensor", (16, 8)), ("fp8_block", (128, 192))],
)
def test_make_linear_sizes_that_do_not_divide_are_refused(recipe, sizes):
    in_features, out_features = sizes
    with pytest.raises(ValueError, match="wanted multiples of"):
        make_linear(in_features, out_features, recipe)


def test_make_linear_unknown_recipe_is_refused():
    with pytest.raises(
        ValueError,
        match="known recipes: plain, fp8_tensor, fp8_tensor_e4m3, fp8_delayed, fp8_block",
    ):
        make_linear(16, 16, "fp4")


@pytest.mark.parametrize(("recipe", "tokens"), [("fp8_tensor", 40), ("fp8_block", 192)])
def test_fp8_tokens_that_do_not_divide_are_refused(recipe, tokens):
    with pytest.raises(ValueError, match=f"got {tokens} tokens"):
        layer_of(recipe)(normal(tokens, 256))


def test_emulated_product_is_that_of_the_widened_casts():
    x, w = normal(128, 256), normal(384, 256, seed=1)
    rows, row_scales, _, _ = fp8_operators.cast_blocks(x)
    squares, square_scales, _, _ = fp8_operators.cast_squares(w)
    found = fp8_emulation.multiply_blocks(rows, squares, row_scales, square_scales, True)
    wide_x = rows.double() * row_scales.t().double().repeat_interleave(128, 1)
    wide_w = squares.double() * square_scales[:, :2].double().repeat_interleave(
        128, 0
    ).repeat_interleave(128, 1)
    assert error(found, wide_x @ wide_w.T) < 1e-6
