"""Letter *: grouped-query attention, causal within a document.

The Mamba layers around it know the order of tokens, so attention needs no positions (Waleffe et al.
2024, arXiv:2406.07887: equal quality with and without RoPE). A Transformer to compare with has them
by `position_embedding_type`. Packed documents are kept apart by a mask, which on CUDA is
FlexAttention's block mask: 2,048-token documents in 8k cost 1.5 ms forward and backward on an H100
against 3.8 ms for full causal attention.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from training_hook.config import HybridConfig
from training_hook.documents import Documents
from training_hook.linear import make_linear
from training_hook.rotary import rotate

# cuDNN reaches 505 TFLOP/s at 8k on an H100, torch's own first choice (FlashAttention 2) 288
CUDA_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class AttentionState(NamedTuple):
    """The keys and values of the tokens seen; it grows by a copy at each call."""

    keys: Tensor
    """(batch, key_value_heads, tokens seen, head_dim)."""
    values: Tensor
    visible: Tensor
    """Whether the token belongs to the last document, (batch, tokens seen)."""


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: HybridConfig, recipe: str) -> None:
        super().__init__()
        self.config = config
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = make_linear(config.hidden_size, queries, recipe)
        self.k_proj = make_linear(config.hidden_size, keys, recipe)
        self.v_proj = make_linear(config.hidden_size, keys, recipe)
        self.o_proj = make_linear(queries, config.hidden_size, recipe)

    def forward(
        self, hidden: Tensor, documents: Documents | None, state: AttentionState | None
    ) -> tuple[Tensor, AttentionState | None, Tensor | None]:
        """Mixes (batch, length, hidden_size) along the length."""
        shape = hidden.shape[:2]
        flat = hidden.flatten(0, 1)
        query, keys, values = (
            projection(flat).unflatten(0, shape).unflatten(-1, (-1, self.config.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, keys, values = (t.transpose(1, 2) for t in (query, keys, values))
        if self.config.position_embedding_type == "rope":
            first = 0 if state is None else state.keys.shape[2]
            query, keys = (rotate(t, first, self.config.rope_theta) for t in (query, keys))
        mask = None if documents is None else documents.mask
        if state is not None:
            if state.keys.shape[2]:
                mask = _extended_mask(state, shape[1], documents)
            state = _extend(state, keys, values, documents)
            keys, values = state.keys, state.values
        mixed = _attend(query, keys, values, mask)
        mixed = mixed.transpose(1, 2).flatten(-2).flatten(0, 1)
        return self.o_proj(mixed).unflatten(0, shape), state, None

    def initial_state(self, batch: int, dtype: torch.dtype) -> AttentionState:
        """Returns the state before the first token."""
        device = self.q_proj.weight.device
        empty = torch.zeros(
            batch,
            self.config.num_key_value_heads,
            0,
            self.config.head_dim,
            device=device,
            dtype=dtype,
        )
        return AttentionState(empty, empty, torch.zeros(batch, 0, device=device, dtype=torch.bool))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws the weights."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.reset_parameters(self.config.initializer_range, generator)
        self.o_proj.reset_parameters(self.config.residual_initializer_range, generator)

    @staticmethod
    def tensor_shapes(config: HybridConfig) -> dict[str, tuple[int, ...]]:
        """Returns the exported names and shapes of the mixer's tensors."""
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        return {
            "q_proj.weight": (queries, config.hidden_size),
            "k_proj.weight": (keys, config.hidden_size),
            "v_proj.weight": (keys, config.hidden_size),
            "o_proj.weight": (config.hidden_size, queries),
        }

    @staticmethod
    def kept_bytes(config: HybridConfig, width: int, product_width: int) -> int:
        """Returns what a token keeps for the backward pass; see `memory.count_memory`."""
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        # the norm's input; queries, keys, values; attention's output and its sums in FP32
        kept = width * (config.hidden_size + 2 * queries + 2 * keys)
        kept += 4 * config.num_attention_heads
        if config.position_embedding_type == "rope":
            kept += width * (queries + keys)
        if product_width == width:  # one input of three products; the last one's is the output
            return kept + width * config.hidden_size
        return kept + product_width * (3 * config.hidden_size + queries)

    @staticmethod
    def forward_flops(config: HybridConfig, length: int) -> int:
        """Returns the FLOPs of a token: the projections, and attention to half the length."""
        queries, keys = config.num_attention_heads, config.num_key_value_heads
        projections = config.hidden_size * config.head_dim * (2 * queries + 2 * keys)
        return 2 * projections + 2 * length * queries * config.head_dim


def _extend(
    state: AttentionState, keys: Tensor, values: Tensor, documents: Documents | None
) -> AttentionState:
    """Appends keys and values of new tokens, and forgets earlier documents."""
    if documents is None:
        seen = state.visible
        new = torch.ones(keys.shape[0], keys.shape[2], dtype=torch.bool, device=keys.device)
    else:
        last = documents.ids[:, -1:]
        seen, new = state.visible & (last == 0), documents.ids == last
    return AttentionState(
        torch.cat([state.keys, keys], dim=2),
        torch.cat([state.values, values], dim=2),
        torch.cat([seen, new], dim=1),
    )


def _extended_mask(state: AttentionState, length: int, documents: Documents | None) -> Tensor:
    """Returns what new tokens see of the old and of each other, (batch, 1, length, all)."""
    before = state.visible[:, None].expand(-1, length, -1)
    within = torch.ones(length, length, dtype=torch.bool, device=before.device).tril()
    within = within.expand(before.shape[0], -1, -1)
    if documents is not None:
        before = before & (documents.ids == 0)[..., None]
        within = within & (documents.ids[:, :, None] == documents.ids[:, None])
    return torch.cat([before, within], dim=2)[:, None]


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
    """Attends under a mask; causally if there is none. Heads stand before positions."""
    if isinstance(mask, BlockMask):
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        mixed = flex(query, keys, values, block_mask=mask, enable_gqa=True)
        assert isinstance(mixed, Tensor)  # and no log-sum-exp, which nobody asked for
        return mixed
    if mask is None and query.is_cuda:
        with sdpa_kernel(CUDA_BACKENDS, set_priority=True):
            return F.scaled_dot_product_attention(
                query, keys, values, is_causal=True, enable_gqa=True
            )
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)  # eager, it forms all scores
