"""Letter M: the Mamba-2 mixer.

One projection makes the gate z, the scan's x, B and C, and the time steps dt; a short convolution
runs over x, B and C, the scan over time, and a norm gated by z closes. Its decode state has a fixed
size: 5 MiB a layer and sequence in FP32 for Nemotron Nano 2, at any context length.

Source: Dao and Gu 2024, arXiv:2405.21060; initial values as Megatron-LM's mamba_mixer.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training_hook.config import HybridConfig
from training_hook.convolution import CausalConvolution
from training_hook.documents import Documents
from training_hook.kernels.mamba_operators import mix, mixes_at_once
from training_hook.kernels.ssd_operators import ssd_packed
from training_hook.linear import make_linear
from training_hook.norm import GatedGroupNorm


class MambaState(NamedTuple):
    """What a Mamba layer remembers of the tokens it has seen."""

    convolution: Tensor
    """The last inputs of the convolution, (batch, conv_kernel - 1, channels)."""
    ssm: Tensor
    """The scan's state, (batch, heads, head_dim, state_size), FP32."""


class Mamba(nn.Module):
    """The Mamba-2 mixer."""

    def __init__(self, config: HybridConfig, recipe: str) -> None:
        super().__init__()
        self.config = config
        inner, heads = config.mamba_inner_size, config.mamba_num_heads
        self.split_sizes = [inner, config.convolution_size, heads]
        self.in_proj = make_linear(
            config.hidden_size, sum(self.split_sizes), recipe, plain_rows=heads
        )
        self.conv1d = CausalConvolution(config.convolution_size, config.conv_kernel)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = GatedGroupNorm(inner, config.n_groups, config.layer_norm_epsilon)
        self.out_proj = make_linear(inner, config.hidden_size, recipe)

    def forward(
        self, hidden: Tensor, documents: Documents | None, state: MambaState | None
    ) -> tuple[Tensor, MambaState | None, Tensor | None]:
        """Mixes (batch, length, hidden_size) along the length."""
        shape = hidden.shape[:2]
        parts = [
            part.unflatten(0, shape) for part in self.in_proj.forward_parts(hidden.flatten(0, 1))
        ]
        document_ids = None if documents is None else documents.ids
        if state is None and len(parts) == 1 and self._mixes_at_once(parts[0]):
            y = self._mix_at_once(parts[0], document_ids)
        else:
            y, state = self._mix(parts, document_ids, state)
        return self.out_proj(y.flatten(0, 1)).unflatten(0, shape), state, None

    def _mix(
        self, parts: list[Tensor], document_ids: Tensor | None, state: MambaState | None
    ) -> tuple[Tensor, MambaState | None]:
        """Returns y before the last projection, and the state after it if one was given."""
        config, sizes = self.config, [self.split_sizes]
        if len(parts) > 1:
            # dt is split where it is alone, too: that lays out its gradient in rows
            sizes = [self.split_sizes[:2], self.split_sizes[2:]]
        gate, xbc, dt = (
            column
            for part, widths in zip(parts, sizes, strict=True)
            for column in part.split(widths, dim=-1)
        )
        xbc, convolution = self.conv1d(xbc, document_ids, state.convolution if state else None)
        y, ssm = ssd_packed(
            xbc,
            dt,
            self._rates(),
            self.D,
            self.dt_bias,
            config.n_groups,
            config.ssm_state_size,
            config.chunk_size,
            document_ids,
            state.ssm if state else None,
        )
        return self.norm(y, gate), MambaState(convolution, ssm) if state else None

    def _mixes_at_once(self, projected: Tensor) -> bool:
        config = self.config
        sizes = config.conv_kernel, config.n_groups, config.ssm_state_size
        return mixes_at_once(projected, self.split_sizes, *sizes)

    def _mix_at_once(self, projected: Tensor, document_ids: Tensor | None) -> Tensor:
        config, conv = self.config, self.conv1d
        y, *_ = mix(
            projected,
            conv.weight,
            conv.bias,
            self._rates(),
            self.D,
            self.dt_bias,
            self.norm.weight,
            document_ids,
            config.n_groups,
            config.ssm_state_size,
            self.norm.epsilon,
        )
        return y

    def _rates(self) -> Tensor:
        """Returns A, the rates of decay, (heads,)."""
        exact = torch.promote_types(self.A_log.dtype, torch.float32)
        return -torch.exp(self.A_log.to(exact))

    def initial_state(self, batch: int, dtype: torch.dtype) -> MambaState:
        """Returns the state before the first token."""
        config, device = self.config, self.D.device
        return MambaState(
            torch.zeros(
                batch, config.conv_kernel - 1, config.convolution_size, device=device, dtype=dtype
            ),
            torch.zeros(
                batch,
                config.mamba_num_heads,
                config.mamba_head_dim,
                config.ssm_state_size,
                device=device,
                dtype=torch.promote_types(dtype, torch.float32),
            ),
        )

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws the weights: A ~ U(1, 16), dt log-uniform after the softplus, D = 1."""
        config, heads, device = self.config, self.config.mamba_num_heads, generator.device
        self.in_proj.reset_parameters(config.initializer_range, generator)
        self.conv1d.reset_parameters(generator)
        rate = torch.empty(heads, device=device).uniform_(1, 16, generator=generator)
        self.A_log.copy_(rate.log())
        low, high = math.log(config.time_step_min), math.log(config.time_step_max)
        step = torch.empty(heads, device=device).uniform_(low, high, generator=generator).exp()
        step = step.clamp(min=config.time_step_floor)
        # inverse of softplus, so that softplus(dt_bias) is the step drawn
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.D.fill_(1)
        self.norm.reset_parameters()
        self.out_proj.reset_parameters(config.residual_initializer_range, generator)

    @staticmethod
    def tensor_shapes(config: HybridConfig) -> dict[str, tuple[int, ...]]:
        """Returns the exported names and shapes of the mixer's tensors."""
        hidden, inner, heads = config.hidden_size, config.mamba_inner_size, config.mamba_num_heads
        channels = config.convolution_size
        return {
            "in_proj.weight": (inner + channels + heads, hidden),
            "conv1d.weight": (channels, 1, config.conv_kernel),
            "conv1d.bias": (channels,),
            "dt_bias": (heads,),
            "A_log": (heads,),
            "D": (heads,),
            "norm.weight": (inner,),
            "out_proj.weight": (hidden, inner),
        }

    @staticmethod
    def kept_bytes(config: HybridConfig, width: int, product_width: int) -> int:
        """Returns what a token keeps for the backward pass; see `memory.count_memory`."""
        inner, channels = config.mamba_inner_size, config.convolution_size
        # the norm's input; gate, what is convolved and dt; the scan's input and output
        kept = config.hidden_size + inner + channels + config.mamba_num_heads + channels + inner
        return width * kept + product_width * (config.hidden_size + inner)

    @staticmethod
    def forward_flops(config: HybridConfig, length: int) -> int:
        """Returns the FLOPs of a token: the projections, and 7 per state element for the scan.

        Source: Megatron-LM, mamba_layer_flops.
        """
        inner = config.mamba_inner_size
        projections = config.hidden_size * (
            2 * inner + config.convolution_size + config.mamba_num_heads
        )
        return 2 * projections + 7 * inner * config.ssm_state_size
