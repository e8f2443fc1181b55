"""Rotary position embedding: where a token stands, as angles by which queries and keys are turned.

Features i and i + head_dim / 2 are the two coordinates of a point that is turned by position *
theta^(-2i / head_dim), so the product of a query and a key depends on how far apart they are. A
packed document need not begin at position 0 for that, and keys are kept as they were turned.

Source: Su et al. 2021, RoFormer, arXiv:2104.09864; halves in place of neighbours as in GPT-NeoX and
Llama.
"""

import torch
from torch import Tensor


def rotate(heads: Tensor, first: int, theta: float) -> Tensor:
    """Turns queries or keys by their positions.

    Args:
        heads: (batch, heads, length, head_dim), head_dim even.
        first: position of the first of them.
        theta: base of the angles' geometric series.

    Returns:
        The same shape and dtype; angles and products are FP32 at least.
    """
    exact = torch.promote_types(heads.dtype, torch.float32)
    length, half = heads.shape[2], heads.shape[3] // 2
    steps = torch.arange(half, device=heads.device, dtype=exact) / half
    positions = torch.arange(first, first + length, device=heads.device, dtype=exact)
    angles = positions[:, None] * theta**-steps
    one, other = heads.to(exact).split(half, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)
    return turned.to(heads.dtype)
