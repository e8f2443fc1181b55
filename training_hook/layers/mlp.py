"""Letter -: the MLP with squared ReLU, two matrices and no gate.

Source: So et al. 2021 (Primer), arXiv:2109.08668, for the squared ReLU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_hook.config import HybridConfig
from training_hook.documents import Documents
from training_hook.fp8_mlp import fp8_squared_relu_mlp
from training_hook.linear import FP8Linear, make_linear


class MLP(nn.Module):
    """down(relu(up(x))^2); it looks at one token at a time and remembers nothing."""

    def __init__(self, config: HybridConfig, recipe: str) -> None:
        super().__init__()
        self.config = config
        self.up_proj = make_linear(config.hidden_size, config.intermediate_size, recipe)
        self.down_proj = make_linear(config.intermediate_size, config.hidden_size, recipe)

    def forward(
        self, hidden: Tensor, documents: Documents | None, state: None
    ) -> tuple[Tensor, None, Tensor | None]:
        """Maps (batch, length, hidden_size) token by token."""
        return self._mix(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2]), None, None

    def _mix(self, x: Tensor) -> Tensor:
        up, down = self.up_proj, self.down_proj
        if isinstance(up, FP8Linear) and isinstance(down, FP8Linear) and up.in_fp8:
            weights, casts = (up.weight, down.weight), (up.cast(), down.cast())
            delayed = up.delayed(), down.delayed()
            return fp8_squared_relu_mlp(x, *weights, *casts, up.recipe, *delayed)
        return down(F.relu(up(x)).square())

    def initial_state(self, batch: int, dtype: torch.dtype) -> None:
        """Returns the state before the first token: there is none."""

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws both weights."""
        self.up_proj.reset_parameters(self.config.initializer_range, generator)
        self.down_proj.reset_parameters(self.config.residual_initializer_range, generator)

    @staticmethod
    def tensor_shapes(config: HybridConfig) -> dict[str, tuple[int, ...]]:
        """Returns the exported names and shapes of the mixer's tensors."""
        hidden, intermediate = config.hidden_size, config.intermediate_size
        return {
            "up_proj.weight": (intermediate, hidden),
            "down_proj.weight": (hidden, intermediate),
        }

    @staticmethod
    def kept_bytes(config: HybridConfig, width: int, product_width: int) -> int:
        """Returns what a token keeps for the backward pass; see `memory.count_memory`."""
        inputs = config.hidden_size + config.intermediate_size  # of the norm and of the square
        return width * inputs + product_width * inputs

    @staticmethod
    def forward_flops(config: HybridConfig, length: int) -> int:
        """Returns the FLOPs of a token: the two products."""
        return 4 * config.hidden_size * config.intermediate_size
