"""The one place where matrix products with weights are made, so that a precision is one choice.

A linear layer takes (tokens, in_features) and gives (tokens, out_features): two dimensions, because
that is what scaled FP8 products want. Weights are FP32 masters; "plain" casts them to the dtype of
the input at every call: 6 bytes of traffic a weight, by arithmetic 4% of the time of a BF16 product
over 16k tokens on an H100. All recipes have the same parameter, so a checkpoint knows none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_hook.fp8 import fp8_linear
from training_hook.linear_recipe import MULTIPLES, check_recipe


class Linear(nn.Module):
    """A product with a weight of (out_features, in_features) in the dtype of the input, no bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def reset_parameters(self, spread: float, generator: torch.Generator) -> None:
        """Draws the weight from normal(0, spread)."""
        draw_normal(self.weight, spread, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in_features) to (tokens, out_features)."""
        return F.linear(x, self.weight.to(x.dtype))


class FP8Linear(Linear):
    """A product that runs in FP8 while it is trained, and in the dtype of the input otherwise.

    Without gradients (evaluation, decoding) it is a `Linear`: what is scored is what is exported,
    and any number of tokens may come.
    """

    def __init__(self, in_features: int, out_features: int, recipe: str) -> None:
        super().__init__(in_features, out_features)
        self.recipe = recipe
        self.low_precision = True
        """False makes it a `Linear` in training, too."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in_features) to (tokens, out_features)."""
        if self.low_precision and torch.is_grad_enabled():
            return fp8_linear(x, self.weight, self.recipe)
        return super().forward(x)


def draw_normal(weight: Tensor, spread: float, generator: torch.Generator) -> None:
    """Fills a weight from normal(0, spread), drawn in FP32 on the generator's device."""
    values = torch.empty(weight.shape, device=generator.device, dtype=torch.float32)
    weight.copy_(values.normal_(0, spread, generator=generator))


def make_linear(in_features: int, out_features: int, recipe: str) -> Linear:
    """Returns a linear layer without values for its weight.

    Args:
        in_features: columns of the input.
        out_features: columns of the output.
        recipe: "plain" multiplies in the dtype of the input (FP32 or BF16), "fp8_tensor" and
            "fp8_block" as `fp8` says.

    Raises:
        ValueError: the recipe is not known, or it cannot have these sizes.
    """
    check_recipe(recipe)
    if recipe == "plain":
        return Linear(in_features, out_features)
    multiple = MULTIPLES[recipe]
    if in_features % multiple or out_features % multiple:
        raise ValueError(
            f"make_linear: {recipe} got in_features {in_features} and out_features {out_features}; "
            f"wanted multiples of {multiple}. Change the model's sizes (a Mamba layer's in_proj "
            "has 2 * heads * head_dim + 2 * groups * state_size + heads), or take another recipe"
        )
    return FP8Linear(in_features, out_features, recipe)
