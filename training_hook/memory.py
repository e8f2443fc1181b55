"""What a run takes of a GPU's memory, counted before anything is built.

Two parts. What is certain: 16 bytes a parameter (FP32 weights and gradients, two moments) and the
casts of weights that a step holds; they are all there at once, so a run that they do not fit in is
refused. Of several GPUs each has its share, and beside it all weights and gradients unless the run
reshards them (`training_hook.shards`). What is estimated: the inputs of products, norms,
convolutions, scans and attention that one micro batch keeps for the backward pass of compiled
layers, and a chunk of the head's logits.

Of a hybrid of 1.05 B with 2 * 8,192 tokens a micro batch 37.20 GiB are estimated in BF16 and 34.82
by "fp8_tensor", where an H200 measured 37.77 and 35.27 (benchmarks/results/bench_gpu.json): 1.5%
and 1.3% too low, for temporary tensors and what the allocator cannot use again. Without compiling
more is kept. So the estimate warns, and never refuses; what is certain is 17.36 of them.
"""

import math
from dataclasses import dataclass

import torch

from pipelines.progress import say
from training_hook.cross_entropy import LOGIT_ROWS
from training_hook.linear_recipe import PRODUCT_BYTES
from training_hook.model import LAYERS, linear_recipes, num_parameters, tensor_shapes
from training_hook.run import PretrainRun

STATE_BYTES = 16
"""A parameter's weight, gradient and two moments, FP32 each."""
GATHERED_BYTES = 8
"""Of each parameter on every rank: its weight and gradient, where they are gathered for a step."""
HELD_BYTES = 2
"""Of a weight's cast: BF16, or FP8 as it is and transposed."""
GIB = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU's memory that a run takes at its peak."""

    state: int
    """Weights, gradients and moments."""
    casts: int
    """Of weights, held for a step."""
    activations: int
    """What a micro batch keeps for its backward pass, estimated."""
    head: int
    """The head's gradient and a chunk of logits, estimated."""

    @property
    def certain(self) -> int:
        """What is there in any case."""
        return self.state + self.casts

    @property
    def estimate(self) -> int:
        """Everything."""
        return self.certain + self.activations + self.head


def count_memory(run: PretrainRun, world_size: int = 1) -> Memory:
    """Returns what a run takes on each of `world_size` GPUs; nothing is built.

    A layer's `kept_bytes(config, width, product_width)` are those of a token in a compiled layer,
    where a value of the hidden states has `width` bytes, and one of a product's input, as it is
    kept, `product_width`: the same in a plain product, 1 in FP8.
    """
    model = run.model
    width: int = getattr(torch, run.precision).itemsize
    tokens = run.micro_batch_size * run.sequence_length
    ends = (run.plain_first_layers, run.plain_last_layers)
    recipes = linear_recipes(model.num_hidden_layers, run.linear_recipe, ends)
    kept, casts = 0, 0
    shapes = tensor_shapes(model)
    for index, (letter, recipe) in enumerate(
        zip(model.hybrid_override_pattern, recipes, strict=True)
    ):
        kept += LAYERS[letter].kept_bytes(model, width, PRODUCT_BYTES.get(recipe, width))
        if recipe != "plain" or width != torch.float32.itemsize:
            prefix = f"backbone.layers.{index}.mixer."
            casts += HELD_BYTES * sum(
                math.prod(shape)
                for name, shape in shapes.items()
                if name.startswith(prefix) and name.endswith("proj.weight")
            )
    reshards = run.reshard and world_size > 1
    casts = 0 if reshards else casts
    table = model.vocab_size * model.hidden_size
    if width != torch.float32.itemsize and not reshards:
        casts += HELD_BYTES * table
    # before and after the last norm, and the gradient that the head keeps instead of logits
    kept += 3 * width * model.hidden_size
    logits = width * model.vocab_size * min(LOGIT_ROWS, tokens)
    if reshards:  # both tables stay gathered from the forward to the backward pass
        logits += 4 * table * (1 if model.tie_word_embeddings else 2)
    return Memory(
        state=_state_bytes(run, world_size),
        casts=casts,
        activations=kept * tokens,
        head=4 * table + logits,
    )


def _state_bytes(run: PretrainRun, world_size: int) -> int:
    parameters = num_parameters(run.model)
    if world_size == 1 or run.reshard:
        return STATE_BYTES * parameters // world_size
    # the shards of gradients come as whole ones go
    return (STATE_BYTES - 4) * parameters // world_size + GATHERED_BYTES * parameters


def check_memory(run: PretrainRun, available: int, world_size: int = 1) -> None:
    """Checks that a run fits into a GPU's memory, and warns where it may not.

    Args:
        run: what to train.
        available: bytes that are free, see `free_memory`.
        world_size: GPUs that train it.

    Raises:
        ValueError: what is certain alone is more.
    """
    need = count_memory(run, world_size)
    several = "several GPUs (torchrun) and reshard=True"
    if world_size > 1:
        several = "more GPUs" if run.reshard else "reshard=True"
    if need.certain > available:
        raise ValueError(
            f"{run.name}: training takes at least {_gib(need.certain)} of a GPU's memory "
            f"({_gib(need.state)} for weights, gradients and moments of "
            f"{num_parameters(run.model):,} parameters in FP32, {_gib(need.casts)} for casts of "
            f"weights) before any activation, and {_gib(available)} are free. Take a GPU with "
            f"more memory, {several}, or a smaller model, or end what else runs on this one; a "
            "smaller micro_batch_size is not enough"
        )
    if need.estimate > available:
        fp8 = ", or linear_recipe='fp8_tensor'" if run.linear_recipe == "plain" else ""
        say(
            f"{run.name}: training takes about {_gib(need.estimate)} of a GPU's memory, "
            f"{_gib(need.activations)} of it for a micro batch of {run.micro_batch_size} * "
            f"{run.sequence_length:,} tokens, and {_gib(available)} are free, so it may run out. "
            f"Should it, take a smaller micro_batch_size (losses stay the same up to rounding)"
            f"{fp8}, {several}, or a GPU with more memory"
        )


def free_memory(device: torch.device) -> int:
    """Returns the bytes that this process can still take of a GPU's memory."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
