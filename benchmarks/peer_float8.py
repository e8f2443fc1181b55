"""torchao's float8 training in the place of our FP8 linear layers.

The layers that our FP8 recipes take become `nn.Linear`, which `convert_to_float8_training` swaps
for its own; ends, head and embeddings stay BF16, and each layer is compiled as ours is. Casts of
weights cannot be held over the micro batches of a step: its layers make them at each call.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import open_folder
from benchmarks.training_steps import drawn_model
from training_hook.linear import Linear
from training_hook.model import HybridModel, linear_recipes
from training_hook.run import PretrainRun


class Converted(nn.Module):
    """What a mixer calls, around a linear layer that torchao has made."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        with torch.device("meta"):
            self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in_features) to (tokens, out_features)."""
        return self.linear(x)

    def forward_parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps as `forward`."""
        return (self(x),)


def converted_model(
    run: PretrainRun,
    device: torch.device,
    recipe: str,
    peers: Path | None,
    emulate: bool = False,
) -> HybridModel:
    """Returns a run's model, compiled, with torchao's layers where our FP8 recipes have ours.

    Args:
        run: its own recipe is "plain".
        device: where.
        recipe: torchao's name of one.
        peers: folder that has torchao.
        emulate: multiply in FP32, for devices without FP8.
    """
    open_folder(peers, "torchao")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    settings = replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate)
    model = drawn_model(run, device)
    ends = run.plain_first_layers, run.plain_last_layers
    recipes = linear_recipes(run.model.num_hidden_layers, "fp8_tensor", ends)
    for layer, ours in zip(model.layers, recipes, strict=True):
        if ours != "plain":
            wrap(layer.mixer)
            convert_to_float8_training(layer.mixer, config=settings)
    model.compile_layers(run.backend)
    return model


def wrap(mixer: Any) -> None:
    """Puts an `nn.Linear` with the same weight in the place of each of our linear layers."""
    for name, module in list(mixer.named_children()):
        if isinstance(module, Linear):
            setattr(mixer, name, Converted(module.weight))
