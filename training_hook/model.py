"""The hybrid model of the Nemotron-H family: layers of any kind, in the order of a pattern string.

Each layer is hidden + mixer(norm(hidden)); a letter names the mixer. Parameters carry the names of
the Hugging Face checkpoint, so that export is a copy. Weights are FP32 masters and products run in
`compute_dtype`; norms, time steps, decays and states of the scan, and the loss are FP32 always, the
residual stream is in `compute_dtype` as in the released models (residual_in_fp32 is false there).

Source: NVIDIA 2025, Nemotron-H, arXiv:2504.03624, and Nemotron Nano 2, arXiv:2508.14444.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast, overload

import torch
from torch import Tensor, nn

from training_hook.amax_history import AmaxHistory
from training_hook.config import HybridConfig
from training_hook.cross_entropy import LOGIT_ROWS, linear_cross_entropy
from training_hook.documents import Documents, document_mask, number_documents
from training_hook.layers.attention import Attention
from training_hook.layers.mamba import Mamba
from training_hook.layers.mlp import MLP
from training_hook.linear import FP8Linear, Linear, draw_normal, make_linear
from training_hook.norm import RMSNorm

LAYERS: dict[str, type[Mamba] | type[MLP] | type[Attention]] = {
    "M": Mamba,
    "-": MLP,
    "*": Attention,
}


class DecodeState(NamedTuple):
    """What the model remembers of the tokens it has seen."""

    last_document: Tensor
    """Id of the last token's document, int32, (batch,)."""
    layers: tuple[Any, ...]
    """The state of each layer, of the layer's own type; None for an MLP."""


class Hidden(NamedTuple):
    """The output of the backbone."""

    hidden: Tensor
    """After the final norm, (batch, length, hidden_size)."""
    state: DecodeState | None
    auxiliary_loss: Tensor | None
    """Mean over tokens, summed over the layers that have one."""


class Loss(NamedTuple):
    """The loss of a batch, on the model's device, so that nothing waits."""

    total: Tensor
    """What is minimized: nats, z-loss and auxiliary losses over all targets, FP32 scalar."""
    targets: Tensor
    """Targets that count, int64 scalar."""
    nats: Tensor
    """Negative log likelihood of each row's targets, FP32, (batch,); not differentiable."""


class Layer(nn.Module):
    """One letter: a norm and a mixer, added to the residual stream."""

    def __init__(self, config: HybridConfig, letter: str, recipe: str) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = LAYERS[letter](config, recipe)

    def forward(
        self, hidden: Tensor, documents: Documents | None, state: Any
    ) -> tuple[Tensor, Any, Tensor | None]:
        """Returns the hidden states, the layer's state if one was given, an auxiliary loss."""
        mixed, state, auxiliary_loss = self.mixer(self.norm(hidden), documents, state)
        return hidden + mixed, state, auxiliary_loss


class Backbone(nn.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, config: HybridConfig, recipes: list[str]) -> None:
        super().__init__()
        # from_pretrained, because the plain constructor draws values from the global generator
        self.embeddings = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(
            Layer(config, letter, recipe)
            for letter, recipe in zip(config.hybrid_override_pattern, recipes, strict=True)
        )
        self.norm_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)


class HybridModel(nn.Module):
    """A language model; its weights have no values before `reset_parameters` or a load.

    Args:
        config: the shape.
        recipe: how the layers' linear products run, see `make_linear`; head and embeddings always
            run in `compute_dtype`.
        plain_ends: layers at the beginning and at the end that do so, too, whatever the recipe.

    Raises:
        ValueError: the recipe is unknown or cannot have the shape's sizes, or no layer has it.
    """

    def __init__(
        self, config: HybridConfig, recipe: str = "plain", plain_ends: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(
            config, linear_recipes(config.num_hidden_layers, recipe, plain_ends)
        )
        self.lm_head = make_linear(config.hidden_size, config.vocab_size, "plain")
        if config.tie_word_embeddings:
            self.lm_head.weight = self.backbone.embeddings.weight
        self._compute_dtype: torch.dtype | None = None

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of products and hidden states: as set, else BF16 for FP32 weights on a CUDA device."""
        weight = self.lm_head.weight
        if self._compute_dtype is not None:
            return self._compute_dtype
        return torch.bfloat16 if weight.is_cuda and weight.dtype == torch.float32 else weight.dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self._compute_dtype = dtype

    @property
    def layers(self) -> list[Layer]:
        """The layers, in order."""
        return cast(list[Layer], list(self.backbone.layers))

    def hidden(
        self,
        tokens: Tensor,
        document_ids: Tensor | None = None,
        state: DecodeState | None = None,
    ) -> Hidden:
        """Runs all layers; see `forward` for the arguments."""
        documents = None
        if document_ids is not None:
            ids = number_documents(document_ids, None if state is None else state.last_document)
            attends = "*" in self.config.hybrid_override_pattern
            documents = Documents(ids, document_mask(ids) if attends else None)
        hidden = self.backbone.embeddings(tokens).to(self.compute_dtype)
        states, auxiliary_losses = [], []
        for index, layer in enumerate(self.layers):
            before = None if state is None else state.layers[index]
            # with a state shapes change at every call, so that path is never the compiled one
            run = layer if state is None else layer.forward
            hidden, after, auxiliary_loss = run(hidden, documents, before)
            states.append(after)
            if auxiliary_loss is not None:
                auxiliary_losses.append(auxiliary_loss)
        if state is not None:
            last = state.last_document if document_ids is None else document_ids[:, -1].int()
            state = DecodeState(last, tuple(states))
        auxiliary_loss = torch.stack(auxiliary_losses).sum() if auxiliary_losses else None
        norm = self.backbone.norm_f
        hidden = norm(hidden) if state is None else norm.forward(hidden)
        return Hidden(hidden, state, auxiliary_loss)

    @overload
    def forward(
        self, tokens: Tensor, document_ids: Tensor | None = None, state: None = None
    ) -> Tensor: ...
    @overload
    def forward(
        self, tokens: Tensor, document_ids: Tensor | None, state: DecodeState
    ) -> tuple[Tensor, DecodeState]: ...
    def forward(
        self,
        tokens: Tensor,
        document_ids: Tensor | None = None,
        state: DecodeState | None = None,
    ) -> Tensor | tuple[Tensor, DecodeState]:
        """Returns logits, and the state after the last token if one before the first was given.

        Args:
            tokens: ids, (batch, length).
            document_ids: int, (batch, length): packed documents, each with an id unlike its
                neighbours'; they do not see one another. One document (which goes on from the
                state) if not given.
            state: of `decode_state` or an earlier call. Prefill passes a prompt, decoding then one
                token at a time.

        Returns:
            Logits (batch, length, vocab_size) in `compute_dtype`.
        """
        output = self.hidden(tokens, document_ids, state)
        logits = self.lm_head(output.hidden.flatten(0, 1)).unflatten(0, tokens.shape)
        return logits if output.state is None else (logits, output.state)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        loss_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        z_loss: float = 0.0,
    ) -> Loss:
        """Returns the loss of a batch, summed over the targets that count.

        Args:
            tokens: ids, (batch, length).
            targets: ids of the tokens that follow, (batch, length).
            loss_mask: bool, true where a target counts, (batch, length); all if not given.
            document_ids: as in `forward`.
            z_loss: weight of the z-loss, see `linear_cross_entropy`.
        """
        output = self.hidden(tokens, document_ids)
        mask = torch.ones_like(targets, dtype=torch.bool) if loss_mask is None else loss_mask
        count = mask.sum()
        # 4 MB of logits stay in a CPU's cache
        rows = LOGIT_ROWS if tokens.is_cuda else max(64, 2**20 // self.config.vocab_size)
        total, nats = linear_cross_entropy(
            output.hidden.flatten(0, 1),
            self.lm_head.weight,
            targets.flatten(),
            mask.flatten(),
            rows,
            z_loss,
            self.lm_head.held_copy if self.lm_head.held else None,
        )
        if output.auxiliary_loss is not None:
            total = total + output.auxiliary_loss * count
        return Loss(total, count, nats.unflatten(0, targets.shape).sum(1))

    def decode_state(self, batch: int) -> DecodeState:
        """Returns the state before the first token of `batch` sequences."""
        layers = tuple(
            layer.mixer.initial_state(batch, self.compute_dtype) for layer in self.layers
        )
        device = self.lm_head.weight.device
        return DecodeState(torch.zeros(batch, dtype=torch.int32, device=device), layers)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws all weights on the generator's device: with a CPU generator, the same anywhere."""
        spread = self.config.initializer_range
        draw_normal(self.backbone.embeddings.weight, spread, generator)
        for layer in self.layers:
            layer.norm.reset_parameters()
            layer.mixer.reset_parameters(generator)
        self.backbone.norm_f.reset_parameters()
        if not self.config.tie_word_embeddings:
            draw_normal(self.lm_head.weight, spread, generator)

    def set_low_precision(self, on: bool) -> None:
        """Lets FP8 layers train in FP8, as they begin, or in `compute_dtype` like all others."""
        for module in self.modules():
            if isinstance(module, FP8Linear):
                module.low_precision = on

    @contextmanager
    def held_weights(self, adds: bool = False) -> Iterator[None]:
        """Casts every weight once, for all forward and backward passes inside; see `linear`.

        Weights must not change inside: optimizer steps, like a change of `compute_dtype` or
        `set_low_precision`, come before or after.

        Args:
            adds: lets the layers' products add to gradients by themselves, see `Linear.hold`.
        """
        products = [module for module in self.modules() if isinstance(module, Linear)]
        try:
            for product in products:
                # the head's gradient comes from its loss
                product.hold(self.compute_dtype, adds and product is not self.lm_head)
            yield
        finally:
            for product in products:
                product.release()

    def amax_histories(self) -> dict[str, AmaxHistory]:
        """Returns the histories of delayed scaling by the name of their product."""
        return {
            name.removesuffix(".history"): module
            for name, module in self.named_modules()
            if isinstance(module, AmaxHistory)
        }

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compiles layer by layer, and the last norm: layers of one letter share a graph."""
        # all letters are one function to the compiler, in training and in evaluation, and 8 is
        # its limit of graphs for a function
        torch._dynamo.config.recompile_limit = 8 * len(LAYERS)
        for layer in self.layers:
            if layer._forward_pre_hooks:  # of FSDP: gathering is no part of the graph
                layer.forward = torch.compile(
                    layer.forward, backend=backend, dynamic=False, fullgraph=True
                )
            else:
                layer.compile(backend=backend, dynamic=False, fullgraph=True)
        self.backbone.norm_f.compile(backend=backend, dynamic=False, fullgraph=True)


def linear_recipes(layers: int, recipe: str, plain_ends: tuple[int, int]) -> list[str]:
    """Returns the recipe of each layer: "plain" for those at the ends.

    Raises:
        ValueError: the ends leave no layer to a recipe other than "plain".
    """
    first, last = plain_ends
    if recipe != "plain" and first + last >= layers:
        raise ValueError(
            f"{recipe}: the first {first} and last {last} of {layers} layers are plain, so none "
            "would run in it; keep fewer plain, or take the recipe 'plain'"
        )
    inner = range(first, layers - last)
    return [recipe if index in inner else "plain" for index in range(layers)]


def tensor_shapes(config: HybridConfig) -> dict[str, tuple[int, ...]]:
    """Returns the exported name and shape of every tensor; a tied head is none of its own."""
    table = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"backbone.embeddings.weight": table}
    for index, letter in enumerate(config.hybrid_override_pattern):
        shapes[f"backbone.layers.{index}.norm.weight"] = (config.hidden_size,)
        for name, shape in LAYERS[letter].tensor_shapes(config).items():
            shapes[f"backbone.layers.{index}.mixer.{name}"] = shape
    shapes["backbone.norm_f.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = table
    return shapes


def num_parameters(config: HybridConfig) -> int:
    """Returns the number of parameters, without building anything."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def forward_flops(config: HybridConfig, length: int) -> int:
    """Returns the FLOPs of one token's forward pass in sequences of `length`.

    Products with weights (head included, embeddings not), scans, and causal attention; a training
    step is three times that. Norms, convolutions and recomputation are left out, as is the custom
    in model FLOPs utilization.
    """
    layers = (
        LAYERS[letter].forward_flops(config, length) for letter in config.hybrid_override_pattern
    )
    return sum(layers) + 2 * config.hidden_size * config.vocab_size
