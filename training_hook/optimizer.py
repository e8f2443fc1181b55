"""AdamW over FP32 master weights, and its moments as tensors under the parameters' names.

Weight decay follows Megatron-LM: matrices, the convolution's filters and the embedding decay;
everything with one dimension does not, which covers norms, biases, A_log, D and dt_bias (decay
would pull the SSM's time scales to a fixed point that has nothing to do with the data).

The moments exist from the start, so a checkpoint has the same tensors at every step, and they carry
Hugging Face tensor names, so a resharded load needs no mapping of parameter groups to indices.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class Named(Protocol):
    """What has parameters: a module, or `Shards` of one."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Returns them by name."""
        ...


def decays(parameter: Tensor) -> bool:
    """Says whether weight decay applies: to everything with two or more dimensions."""
    return parameter.ndim >= 2


def adamw(
    model: Named, betas: tuple[float, float], epsilon: float, weight_decay: float
) -> torch.optim.AdamW:
    """Returns a fused AdamW with zero moments; the learning rate is set before each step.

    Raises:
        ValueError: a parameter is not float32: the master weights must be.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"adamw: {name} is {parameter.dtype}; master weights must be float32, "
                "computing in bfloat16 is the model's compute_dtype"
            )
    groups = [
        {"params": [p for p in parameters.values() if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters.values() if not decays(p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)
    for parameter in parameters.values():
        state = optimizer.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def moments(model: Named, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Returns the optimizer's tensors themselves: {"exp_avg": {parameter name: tensor}, ...}."""
    return {
        moment: {name: optimizer.state[p][moment] for name, p in model.named_parameters()}
        for moment in MOMENTS
    }


def set_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Sets the number of updates that the moments have seen (Adam's bias correction needs it)."""
    for state in optimizer.state.values():
        state["step"].fill_(steps)
