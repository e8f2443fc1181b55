from typing import Any

import pytest
import torch

from tests.training_hook import test_mamba_operators, test_norm_kernels
from tests.training_hook.test_convolution_kernels import (
    assert_near,
    differentiate,
    exact,
    operands,
)
from training_hook.convolution import CausalConvolution, plain_convolution
from training_hook.cross_entropy import differentiate as plain_cross_entropy
from training_hook.documents import Documents
from training_hook.kernels import cross_entropy_kernels
from training_hook.kernels.convolution_operators import convolve
from training_hook.layers import mamba
from training_hook.norm import GatedGroupNorm, plain_gated_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # the compiler's advice to use TF32, and its own use of what PyTorch deprecates
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]

# all is computed in FP32, and rounded once: to BF16 by 2^-9 of each value at most
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1.01 * 2.0**-9}


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*shape, generator=generator).cuda().to(dtype)


def to_cuda(inputs: list[Any], dtype: torch.dtype, singles: tuple[int, ...]) -> list[Any]:
    """Moves operands; those in `singles` stay FP32, others get the dtype, in their strides."""
    return [
        value.cuda().to(dtype)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and n not in singles
        else value.cuda()
        if isinstance(value, torch.Tensor)
        else value
        for n, value in enumerate(inputs)
    ]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("length", "channels", "kernel", "documents", "initial"),
    [
        (1000, 640, 4, False, False),
        (1000, 640, 4, True, True),
        (257, 250, 4, True, False),  # rows that do not begin at multiples of 16 bytes
        (129, 384, 8, True, True),
        (300, 384, 2, False, True),
        (2, 640, 4, True, True),
        (1, 640, 4, False, True),
    ],
)
def test_convolution_on_cuda_equals_float64(length, channels, kernel, documents, initial, dtype):
    inputs = to_cuda(operands(length, kernel, documents, initial, channels), dtype, (1, 2))
    wide = normal(2, length, channels + 32, dtype=dtype)
    wide[:, :, 16 : channels + 16] = inputs[0]
    inputs[0] = wide[:, :, 16 : channels + 16]
    dy = normal(2, length, channels, dtype=dtype)
    wanted = exact(plain_convolution, inputs, dy)
    found = differentiate(convolve, inputs, dy)
    assert [t.dtype for t in found[:4]] == [dtype, dtype, torch.float32, torch.float32]
    assert_near(found, wanted, TOLERANCES[dtype])


def test_convolution_on_cuda_is_the_same_every_time_and_compiled():
    inputs = to_cuda(operands(3000, 4, True, False, 512), torch.bfloat16, (1, 2))
    dy = normal(2, 3000, 512, dtype=torch.bfloat16)
    first = differentiate(convolve, inputs, dy)
    compiled = torch.compile(convolve, fullgraph=True, dynamic=False)
    for run in (convolve, compiled, compiled):
        for a, b in zip(differentiate(run, inputs, dy), first, strict=True):
            assert torch.equal(a, b)


@torch.no_grad()
def test_convolution_module_on_cuda_pieces_with_state_equal_whole():
    module = CausalConvolution(320, 4)
    module.reset_parameters(torch.Generator().manual_seed(0))
    x, *_ = operands(200, 4, False, False, 320)
    ids = (torch.arange(200) // 70).expand(2, -1)
    for given in (None, ids):
        wanted, last = module.cpu().double()(x.double(), given)
        module = module.float().cuda()
        state, pieces = None, []
        for begin, end in ((0, 130), (130, 132), (132, 133), (133, 134), (134, 200)):
            part = None if given is None else given[:, begin:end].cuda()
            if part is not None and begin:
                part = part - given[0, begin - 1].item()  # id 0 goes on from the state
            y, state = module(x[:, begin:end].cuda(), part, state)
            pieces.append(y.cpu())
        assert_near([torch.cat(pieces, 1), state.cpu()], [wanted, last], 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("tokens", "size", "groups"),
    [(1001, 4096, 8), (77, 10240, 8), (300, 10240, 128), (65, 4096, 1), (33, 500, 4), (1, 640, 2)],
)
def test_gated_norm_on_cuda_equals_float64(tokens, size, groups, dtype):
    inputs = to_cuda(test_norm_kernels.operands(tokens, size, groups), dtype, (2,))
    wide = torch.cat([inputs[0], inputs[1], inputs[0][..., :64]], -1)
    inputs[:2] = wide[..., :size], wide[..., size : 2 * size]
    dy = normal(1, tokens, size, dtype=dtype)
    wanted = exact(plain_gated_norm, inputs, dy)
    found = differentiate(test_norm_kernels.output, inputs, dy)
    assert [t.dtype for t in found] == [dtype, dtype, dtype, torch.float32]
    assert_near(found, wanted, TOLERANCES[dtype])


def test_gated_norm_module_on_cuda_is_the_same_every_time_and_compiled():
    module = GatedGroupNorm(4096, 8, 1e-5).cuda()
    x, gate, weight, *_ = to_cuda(test_norm_kernels.operands(3000, 4096, 8), torch.bfloat16, (2,))
    with torch.no_grad():
        module.weight.copy_(weight)
    dy = normal(1, 3000, 4096, dtype=torch.bfloat16)
    x.requires_grad_()
    first = torch.autograd.grad(module(x, gate), [x, module.weight], dy)
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    for run in (module, compiled, compiled):
        again = torch.autograd.grad(run(x, gate), [x, module.weight], dy)
        for a, b in zip(again, first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_mamba_layer_on_cuda_at_once_gives_the_bits_of_its_parts(dtype, compiled, monkeypatch):
    torch._dynamo.reset()
    hidden = normal(2, 300, 24, dtype=dtype)
    ids = test_mamba_operators.documents_of(2, 300).ids.cuda()
    found = []
    for at_once in (mamba.mixes_at_once, lambda *_: False):
        monkeypatch.setattr(mamba, "mixes_at_once", at_once)
        layer = test_mamba_operators.layer_of().cuda()
        assert layer._mixes_at_once(normal(2, 300, sum(layer.split_sizes), dtype=dtype)) is (
            not found
        )
        if compiled:
            layer.compile(fullgraph=True, dynamic=False)
        found.append(test_mamba_operators.gradients(layer, hidden, Documents(ids, None)))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("columns", [32_000, 65_536, 131_072, 50_257, 7])
def test_cross_entropy_on_cuda_equals_float64(columns, dtype):
    logits = 5 * normal(33, columns, dtype=dtype)
    targets = (torch.arange(33) * 7919 % columns).cuda()
    mask = (torch.arange(33) % 4 != 2).cuda()
    for z_loss in (0.0, 1e-2):
        given, exactly = logits.clone(), logits.double()
        wanted = plain_cross_entropy(exactly, targets, mask, z_loss)
        got = cross_entropy_kernels.differentiate(given, targets, mask, z_loss)
        torch.testing.assert_close(got, wanted, rtol=2e-6, atol=1e-5, check_dtype=False)
        limits = {"rtol": 2e-5 if dtype == torch.float32 else 1.01 * 2.0**-8, "atol": 1e-7}
        torch.testing.assert_close(given, exactly, **limits, check_dtype=False)
        assert not given[~mask].any()
