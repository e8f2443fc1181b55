"""A causal depthwise convolution with SiLU that stops at document boundaries and carries a state.

Each channel is a short filter over time (4 taps in Mamba-2). On a GPU it is a kernel of ours. The
plain form, shifted multiply-adds, is what the kernel is held to and what runs elsewhere: no layout
change, and what compilers can fuse, but compiled its backward is 3.6 times slower on an H100 than a
kernel made for it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_hook.kernels.convolution_operators import convolve, has_kernel


class CausalConvolution(nn.Module):
    """Filters every channel over the last `kernel` positions, then SiLU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws weight and bias from U(-1/sqrt(kernel), 1/sqrt(kernel)), as torch's Conv1d does."""
        bound = self.weight.shape[-1] ** -0.5
        for parameter in (self.weight, self.bias):
            values = torch.empty(parameter.shape, device=generator.device)
            parameter.copy_(values.uniform_(-bound, bound, generator=generator))

    def forward(
        self, x: Tensor, document_ids: Tensor | None = None, initial_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Filters a batch of sequences.

        Args:
            x: (batch, length, channels).
            document_ids: int, (batch, length), never falling along a row; earlier documents read
                as zeros. Id 0 continues `initial_state`.
            initial_state: the kernel - 1 inputs before the first position, (batch, kernel - 1,
                channels); zeros if not given.

        Returns:
            y like x, and the last kernel - 1 inputs (of the last document).
        """
        history = self.weight.shape[-1] - 1
        initial_state = None if initial_state is None else initial_state.to(x.dtype)
        run = convolve if has_kernel(x, history + 1) else plain_convolution
        y = run(x, self.weight, self.bias, document_ids, initial_state)
        return y, _last_inputs(x, document_ids, initial_state, history)


def plain_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
) -> Tensor:
    """Filters with PyTorch's operators, in FP32 at least; see `CausalConvolution.forward`."""
    length, history = x.shape[1], weight.shape[-1] - 1
    exact = torch.promote_types(x.dtype, torch.float32)
    if initial_state is None:
        inputs = F.pad(x, (0, 0, history, 0))
    else:
        inputs = torch.cat([initial_state, x], dim=1)
    taps = weight[:, 0].to(exact).unbind(-1)
    y = torch.addcmul(bias.to(exact), x.to(exact), taps[-1])
    for shift in range(1, history + 1):
        earlier = inputs[:, history - shift : history - shift + length]
        if document_ids is not None:
            same = document_ids == F.pad(document_ids, (shift, 0))[:, :length]
            earlier = earlier * same[..., None]
        y = torch.addcmul(y, earlier.to(exact), taps[-1 - shift])
    return F.silu(y).to(x.dtype)


def _last_inputs(
    x: Tensor, document_ids: Tensor | None, initial_state: Tensor | None, history: int
) -> Tensor:
    """Returns the state after the last position, in memory of its own."""
    length = x.shape[1]
    begin, missing = max(0, length - history), max(0, history - length)
    last = x[:, begin:]
    if missing and initial_state is not None:
        last = torch.cat([initial_state[:, length:], last], dim=1)
    else:
        last = F.pad(last, (0, 0, missing, 0))
    if document_ids is not None:
        same = F.pad(document_ids[:, begin:], (missing, 0)) == document_ids[:, -1:]
        last = last * same[..., None]
    # a view would keep all of x alive as long as the state
    return last.clone()
