import pytest
import torch
from torch import Tensor

from tests.training_hook.test_fp8 import RECIPES, error, layer_of, normal, three_products
from tests.training_hook.test_fp8_training import MODEL
from training_hook import fp8_emulation, fp8_operators
from training_hook.fp8_emulation import E4M3, E5M2
from training_hook.model import HybridModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # the compiler's advice to use TF32, and its own use of what PyTorch deprecates
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]


def wild(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Values over 60 octaves, whole blocks of zeros, and values next to the largest."""
    x = normal(rows, columns) * torch.exp(8 * normal(rows, columns, seed=1))
    x[:128, :128] = 0
    x[128:256, :128] = 1.75 + torch.arange(128) * 2.0**-7
    return x.to(dtype)


def assert_same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        as_bytes = ours.cpu().contiguous().view(-1).view(torch.uint8)
        assert torch.equal(as_bytes, theirs.contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casts_on_cuda_equal_cpu_bit_for_bit(dtype):
    x = wild(640, 384, dtype)
    for fp8 in (E4M3, E5M2):
        for part in (x, x[:208, 16:96], x.abs()[256:].clamp(max=1)):
            amax = part.abs().amax().float()
            found = fp8_operators.cast_tensor(part.cuda(), amax.cuda(), fp8)
            assert_same(found, fp8_emulation.cast_tensor(part, amax, fp8))
    strided = x.cuda()[:, 128:]
    assert strided.stride(0) == 384
    for part, cuda in ((x, x.cuda()), (x[:, 128:], strided)):
        assert_same(fp8_operators.cast_blocks(cuda), fp8_emulation.cast_blocks(part))
        assert_same(fp8_operators.cast_squares(cuda), fp8_emulation.cast_squares(part))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_products_on_cuda_equal_cpu(recipe, compiled):
    layer = layer_of(recipe, 640, 384)
    x, dy = normal(512, 640, seed=2).bfloat16(), normal(512, 384, seed=3).bfloat16()
    wanted = three_products(layer, x, dy)
    layer.cuda()
    if compiled:
        layer.compile(fullgraph=True, dynamic=False)
    found = three_products(layer, x.cuda(), dy.cuda())
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        # BF16 results are rounded alike; sums are in another order, and of 14 bits where fast
        assert error(ours.cpu(), theirs.double()) < 5e-3


@pytest.mark.parametrize("recipe", RECIPES)
def test_operand_on_cuda_that_is_not_finite_surfaces(recipe):
    for bad in (torch.inf, torch.nan):
        layer = layer_of(recipe).cuda()
        x, dy = normal(128, 256).bfloat16().cuda(), normal(128, 384).bfloat16().cuda()
        x[5, 7] = bad
        y, _, dw = three_products(layer, x, dy)
        assert y[5].isnan().all()
        assert dw[:, 7].isnan().all()
        x[5, 7], dy[5, 9] = 0, bad
        _, dx, dw = three_products(layer, x, dy)
        assert dx[5].isnan().all()
        assert dw[9].isnan().all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_model_in_fp8_on_cuda_compiled_trains_and_switches(recipe):
    model = HybridModel(MODEL, recipe, (1, 1))
    model.reset_parameters(torch.Generator().manual_seed(0))
    tokens = torch.randint(0, MODEL.vocab_size, (2, 256), generator=torch.Generator())
    wanted, *_ = model.loss(tokens, tokens)
    wanted_gradients = torch.autograd.grad(wanted, list(model.parameters()))
    model.cuda()
    model.compile_layers()
    for low_precision in (True, False, True):
        model.set_low_precision(low_precision)
        total, *_ = model.loss(tokens.cuda(), tokens.cuda())
        gradients = torch.autograd.grad(total, list(model.parameters()))
        assert float(total) == pytest.approx(float(wanted), rel=1e-2)
        named = zip(model.named_parameters(), gradients, wanted_gradients, strict=True)
        for (name, _), a, b in named:
            assert (a.cpu() - b).norm() < 0.2 * b.norm(), name
