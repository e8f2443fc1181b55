import pytest
import torch
from torch import Tensor

from tests.training_hook.test_ssd_kernels import (
    Case,
    draw_case,
    exact_results,
    relative_errors,
    scan_results,
)
from training_hook.kernels import ssd_operators

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # the compiler's advice to use TF32, and its own use of what PyTorch deprecates
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]

# heads, groups, head_dim, state_size: the 1.05B hybrid, Nano 2's heads, others that are allowed
SIZES = [(64, 8, 64, 128), (16, 2, 80, 128), (8, 2, 128, 64), (4, 1, 128, 256)]


def cuda_case(
    batch: int, length: int, sizes: tuple[int, ...], documents: bool, dtype: torch.dtype
) -> tuple[Case, tuple[Tensor, Tensor]]:
    """A case on the device whose values the dtype has."""
    case, (dy, dfinal) = draw_case(batch, length, *sizes, documents, initial=documents)
    for name in ("xbc", "dt"):
        case[name] = case[name].to(dtype).double()
    case = {name: None if t is None else t.cuda() for name, t in case.items()}
    return case, (dy.to(dtype).double().cuda(), dfinal.cuda())


@pytest.mark.parametrize(
    ("sizes", "batch", "length", "documents"),
    [(sizes, 2, 1000, True) for sizes in SIZES] + [(sizes, 1, 512, False) for sizes in SIZES[:2]],
)
def test_scan_in_bf16_equals_float64(sizes, batch, length, documents):
    case, weights = cuda_case(batch, length, sizes, documents, torch.bfloat16)
    found = scan_results(case, weights, sizes[1], torch.bfloat16)
    errors = relative_errors(found, exact_results(case, weights, sizes[1]))
    for name, error in errors.items():
        assert error <= (0.004 if name in ("y", "final") else 0.008), errors


# products of FP32 are compiled for half a minute, so each size has one case
@pytest.mark.parametrize(
    ("sizes", "batch", "length", "documents"),
    [(SIZES[0], 1, 512, False), (SIZES[1], 2, 1000, True)],
)
def test_scan_in_float32_equals_float64(sizes, batch, length, documents):
    case, weights = cuda_case(batch, length, sizes, documents, torch.float32)
    errors = relative_errors(
        scan_results(case, weights, sizes[1]), exact_results(case, weights, sizes[1])
    )
    assert max(errors.values()) <= 1e-4, errors


def test_scan_twice_is_equal_bit_for_bit():
    case, weights = cuda_case(2, 1000, SIZES[0], True, torch.bfloat16)
    first, second = (scan_results(case, weights, 8, torch.bfloat16) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_scan_reads_slices_and_compiles_whole():
    case, weights = cuda_case(2, 200, SIZES[0], True, torch.bfloat16)
    state = case["initial_state"].float()
    by_head = [case[name].float() for name in ("A", "D", "dt_bias")]
    wide = torch.cat([case["xbc"], case["dt"]], dim=-1).bfloat16().requires_grad_()
    channels = case["xbc"].shape[-1]

    def scan(wide: Tensor) -> tuple[Tensor, Tensor]:
        xbc, dt = wide[..., :channels], wide[..., channels:]
        ids = case["document_ids"]
        return ssd_operators.ssd_packed(xbc, dt, *by_head, 8, 128, 128, ids, state)

    wanted = scan_results(case, weights, 8, torch.bfloat16)
    for function in (scan, torch.compile(scan, fullgraph=True, dynamic=False)):
        y, final = function(wide)
        by = (weights[0].to(y.dtype), weights[1].to(final.dtype))
        (dwide,) = torch.autograd.grad([y, final], [wide], by)
        assert torch.equal(y, wanted["y"])
        assert torch.equal(final, wanted["final"])
        parts = torch.cat([wanted[name] for name in ("x", "B", "C", "dt")], dim=-1)
        assert torch.equal(dwide, parts)


def test_scan_operators_pass_the_checks_of_torch():
    case, _ = cuda_case(1, 96, (4, 2, 32, 16), True, torch.bfloat16)
    low = [case[name].bfloat16().requires_grad_() for name in ("xbc", "dt")]
    single = [case[n].float().requires_grad_() for n in ("A", "D", "dt_bias", "initial_state")]
    arguments = (*low, *single[:3], case["document_ids"], single[3], 2, 16)
    torch.library.opcheck(ssd_operators.scan, arguments)


@pytest.mark.parametrize("length", [2, 129])
def test_scan_documents_of_one_position_equal_float64(length):
    case, weights = cuda_case(1, length, (8, 2, 32, 32), True, torch.float32)
    case["document_ids"] = torch.arange(length, device="cuda").expand(1, -1)
    wanted = exact_results(case, weights, 2)
    for name, error in relative_errors(scan_results(case, weights, 2), wanted).items():
        assert error <= 1e-4, (name, error)


def test_scan_steps_far_apart_in_size_stay_finite():
    case, weights = cuda_case(1, 300, (8, 2, 64, 64), True, torch.bfloat16)
    # softplus from 1e-30 to 100, decays down to exp(-1e5)
    case["dt"] = (case["dt"] * 40).bfloat16().double()
    found = scan_results(case, weights, 2, torch.bfloat16)
    for name, tensor in found.items():
        assert torch.isfinite(tensor).all(), name
    errors = relative_errors(found, exact_results(case, weights, 2))
    assert errors["y"] < 0.01, errors
