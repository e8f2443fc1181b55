"""A Mamba layer whose parts run at once, in Triton's interpreter, against plain PyTorch."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from tests.training_hook.test_ssd_kernels import let_loops_end_at_arguments
from tests.training_hook.triton_interpreter import run_in_interpreter
from training_hook.config import HybridConfig
from training_hook.documents import Documents
from training_hook.layers import mamba
from training_hook.layers.mamba import Mamba

CONFIG = HybridConfig(
    hybrid_override_pattern="M",
    vocab_size=64,
    hidden_size=24,
    intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    mamba_num_heads=4,
    mamba_head_dim=16,
    n_groups=2,
    ssm_state_size=16,
)


def layer_of(config: HybridConfig = CONFIG) -> Mamba:
    layer = Mamba(config, "plain")
    with torch.no_grad():
        layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer


def documents_of(batch: int, length: int) -> Documents:
    starts = torch.rand(batch, length, generator=torch.Generator().manual_seed(2)) < 0.1
    return Documents(starts.int().cumsum(1, dtype=torch.int32), None)


def gradients(layer: Mamba, hidden: Tensor, documents: Documents | None) -> dict[str, Tensor]:
    """Returns y and the gradients by the input and every weight of its sum under fixed weights."""
    hidden = hidden.detach().requires_grad_()
    layer.zero_grad()
    y, state, _ = layer(hidden, documents, None)
    assert state is None
    by = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    y.backward(by)
    named = {name: p.grad.detach().clone() for name, p in layer.named_parameters()}
    return {"y": y.detach(), "hidden": hidden.grad, **named}


def compare_with_plain() -> None:
    """Runs the layer; to be called where TRITON_INTERPRET is set before Triton is imported."""
    let_loops_end_at_arguments()
    hidden = torch.randn(2, 37, 24, generator=torch.Generator().manual_seed(3))
    for documents in (None, documents_of(2, 37)):
        wanted = gradients(layer_of().double(), hidden.double(), documents)
        mamba.mixes_at_once = lambda *_: True
        compiled = layer_of()
        compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        for layer in (layer_of(), compiled):
            found = gradients(layer, hidden, documents)
            for name, exact in wanted.items():
                error = (found[name].double() - exact).norm() / exact.norm()
                assert error < 2e-4, f"{name} differs by {error}"
        mamba.mixes_at_once = lambda *_: False
    check_operators()


def check_operators() -> None:
    from training_hook.kernels.mamba_operators import mix, mix_backward

    layer = layer_of()
    weights = (layer.conv1d.weight, layer.conv1d.bias, -layer.A_log.exp(), layer.D, layer.dt_bias)
    weights = tuple(w.detach() for w in (*weights, layer.norm.weight))
    projected = torch.randn(2, 20, sum(layer.split_sizes))
    ids = documents_of(2, 20).ids
    y, *kept = mix(projected, *weights, ids, 2, 16, 1e-5)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(mix, (projected, *weights, ids, 2, 16, 1e-5), test_utils=checks)
    saved = (y, projected, *weights, ids, *kept, 2, 16)
    torch.library.opcheck(mix_backward, saved, test_utils=checks)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_mamba_layer_at_once_in_the_interpreter_equals_plain():
    run_in_interpreter(compare_with_plain)


def test_mamba_layer_without_kernels_runs_its_parts():
    layer = layer_of()
    assert not layer._mixes_at_once(torch.zeros(1, 8, sum(layer.split_sizes)))
