"""Where documents begin in a packed batch, and what a token may look at.

Packed documents are strangers: recurrent states start at zero and attention stops where the id
changes, so a packed row gives what its documents give alone. The mask is made once for a batch and
shared by the attention layers.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


class Documents(NamedTuple):
    """The documents of a packed batch."""

    ids: Tensor
    """int32, (batch, length), rising by one at each boundary; 0 continues the state's document."""
    mask: Tensor | BlockMask | None
    """Causal within documents, (batch, 1, length, length), or in blocks; None if not wanted."""


def number_documents(document_ids: Tensor, last_document: Tensor | None = None) -> Tensor:
    """Numbers the documents of each row by their order.

    Args:
        document_ids: int, (batch, length); neighbours of one document have one id.
        last_document: id of the token before each row, (batch,); the row's first document is
            taken as its continuation if not given.

    Returns:
        int32, (batch, length): 0 for the document that goes on, rising by one at each boundary.
    """
    before = document_ids[:, 0] if last_document is None else last_document.to(document_ids.dtype)
    previous = torch.cat([before[:, None], document_ids[:, :-1]], dim=1)
    return (document_ids != previous).cumsum(1, dtype=torch.int32)


def document_mask(ids: Tensor) -> Tensor | BlockMask:
    """Returns the mask of causal attention within documents, as blocks on a CUDA device."""
    batch, length = ids.shape
    if not ids.is_cuda:
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        return (causal & (ids[:, :, None] == ids[:, None]))[:, None]

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (ids[row, query] == ids[row, key])

    return _compiled_create_block_mask()(visible, batch, None, length, length, device=ids.device)


@cache
def _compiled_create_block_mask() -> Callable[..., BlockMask]:
    # compiled, it never forms the (length, length) mask that its blocks summarize: 64 MB at 8k
    return torch.compile(create_block_mask, dynamic=False)
