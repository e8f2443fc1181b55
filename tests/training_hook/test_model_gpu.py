import pytest
import torch

from training_hook.config import HybridConfig
from training_hook.model import HybridModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # the compiler's advice to use TF32, and its own use of what PyTorch deprecates
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]

CONFIG = HybridConfig(
    hybrid_override_pattern="M-*-MM",
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    mamba_num_heads=8,
    mamba_head_dim=64,
    n_groups=2,
    ssm_state_size=64,
)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 512, (2, 512), generator=generator)
    ids = (torch.rand(2, 512, generator=generator) < 0.01).int().cumsum(1)
    return tokens, ids


def loss_and_gradients(
    model: HybridModel, tokens: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    total, *_ = model.loss(tokens, tokens, None, ids)
    gradients = torch.autograd.grad(total, list(model.parameters()))
    return total.detach().cpu(), [gradient.cpu() for gradient in gradients]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)], ids=["fp32", "bf16"]
)
def test_model_on_cuda_equals_cpu(compiled, dtype, tolerance):
    model = HybridModel(CONFIG)
    model.reset_parameters(torch.Generator().manual_seed(0))
    tokens, ids = batch(0)
    wanted, wanted_gradients = loss_and_gradients(model, tokens, ids)
    model.cuda()
    assert model.compute_dtype == torch.bfloat16
    model.compute_dtype = dtype
    if compiled:
        model.compile_layers()
    total, gradients = loss_and_gradients(model, tokens.cuda(), ids.cuda())
    torch.testing.assert_close(total, wanted, rtol=tolerance / 50, atol=0)
    for (name, _), a, b in zip(model.named_parameters(), gradients, wanted_gradients, strict=True):
        assert (a - b).norm() < tolerance * b.norm(), name


def test_model_compiled_batches_with_other_documents_share_graphs():
    model = HybridModel(CONFIG)
    model.reset_parameters(torch.Generator().manual_seed(0))
    model.cuda()
    model.compile_layers()
    torch._dynamo.reset()
    loss_and_gradients(model, *(t.cuda() for t in batch(0)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2):
            loss_and_gradients(model, *(t.cuda() for t in batch(seed)))


@torch.no_grad()
def test_model_on_cuda_prefill_and_decode_equal_whole():
    model = HybridModel(CONFIG)
    model.reset_parameters(torch.Generator().manual_seed(0))
    model.cuda()
    model.compute_dtype = torch.float32
    tokens = batch(0)[0].cuda()
    whole = model(tokens)
    first, state = model(tokens[:, :300], None, model.decode_state(2))
    second, state = model(tokens[:, 300:511], None, state)
    last, _ = model(tokens[:, 511:], None, state)
    torch.testing.assert_close(torch.cat([first, second, last], 1), whole, rtol=0, atol=1e-4)
