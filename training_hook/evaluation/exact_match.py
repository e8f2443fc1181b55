"""Exact answers without decoding: one forward pass tells whether greedy decoding would give them.

The true answer is fed behind the prompt. Greedy decoding gives that answer if and only if the
likeliest token is the right one at each of its places: as long as they agree, both have seen the
same tokens, and the first disagreement is an error in both. So a batch of items takes one pass
instead of one for each token of the answer.

Prompt and answer are encoded together and the answer's tokens are those behind the prompt's own, as
a model that continues the prompt would write them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from training_hook.evaluation.share import share
from training_hook.model import HybridModel

BATCH_TOKENS = 32_768
HEAD_ROWS = 4_096
"""Targets whose logits exist at a time: 2 GB in FP32 with 131,072 ids."""


class Encoder(Protocol):
    """What is asked of a vocabulary."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, without any special token."""
        ...


@dataclass(frozen=True)
class Item:
    """A prompt that has one right continuation."""

    id: str
    prompt: str
    answer: str
    """With the white space that stands before it."""
    labels: Mapping[str, int | str]
    """What scores are told apart by, for example the number of entries."""


@dataclass(frozen=True)
class EncodedItem:
    """An item as tokens."""

    tokens: np.ndarray  # int64, prompt and answer
    answer_start: int
    """Place of the answer's first token, at least 1."""


@dataclass(frozen=True)
class Match:
    """How an item was answered."""

    tokens: int
    """Of the answer."""
    right_tokens: int
    """Of them, the ones that are likeliest where all before them are right."""
    log_likelihood: float
    """Of the answer, in nats."""

    @property
    def exact(self) -> bool:
        """Whether greedy decoding gives the answer."""
        return self.right_tokens == self.tokens


def encode_items(vocabulary: Encoder, items: Sequence[Item]) -> list[EncodedItem]:
    """Encodes items.

    Raises:
        ValueError: a prompt or an answer is empty, or the answer's first token begins in the
            prompt.
    """
    prompts = vocabulary.encode_batch([item.prompt for item in items])
    wholes = vocabulary.encode_batch([item.prompt + item.answer for item in items])
    found = []
    for item, prompt, whole in zip(items, prompts, wholes, strict=True):
        start = len(prompt)
        if not 0 < start < len(whole) or not np.array_equal(whole[:start], prompt):
            raise ValueError(
                f"item {item.id}: {item.prompt[-20:]!r} and {item.answer!r} give {start} tokens "
                f"apart and {len(whole)} together that do not begin alike; wanted a prompt that "
                "ends where a token of this vocabulary ends"
            )
        found.append(EncodedItem(whole.astype(np.int64), start))
    return found


@torch.no_grad()
def match_items(
    model: HybridModel,
    items: Sequence[EncodedItem],
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Match]:
    """Says of each item whether greedy decoding would give its answer.

    Args:
        model: on its device; it is put into evaluation mode.
        items: of any lengths; those of about one length go through the model together.
        batch_tokens: tokens that do so at once, at most, but for a longer item.
        advance: called with the number of items done, for progress; may raise to stop.
    """
    model.eval()
    device = model.lm_head.weight.device
    order = sorted(range(len(items)), key=lambda number: len(items[number].tokens))
    found: dict[int, Match] = {}
    while order:
        width = len(items[order[-1]].tokens) - 1  # the last token predicts nothing that is asked
        numbers = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // width)))]
        # what stands right of an item changes nothing in it: all layers are causal
        tokens = np.zeros((len(numbers), width), np.int64)
        rows, places, targets = [], [], []
        for row, number in enumerate(numbers):
            item = items[number]
            tokens[row, : len(item.tokens) - 1] = item.tokens[:-1]
            answer = item.tokens[item.answer_start :]
            rows.append(np.full(len(answer), row))
            places.append(np.arange(len(answer)) + item.answer_start - 1)
            targets.append(answer)
        hidden = model.hidden(torch.from_numpy(tokens).to(device)).hidden
        row, place, target = (
            torch.from_numpy(np.concatenate(part)).to(device) for part in (rows, places, targets)
        )
        right, likelihood = _predictions(model, hidden[row, place], target)
        ends = np.cumsum([len(target) for target in targets])[:-1]
        parts = zip(numbers, np.split(right, ends), np.split(likelihood, ends), strict=True)
        for number, is_right, nats in parts:
            found[number] = Match(len(is_right), int(is_right.sum()), float(nats.sum()))
        advance(len(numbers))
    return [found[number] for number in range(len(items))]


def _predictions(
    model: HybridModel, hidden: Tensor, targets: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Returns of each target whether it is the likeliest token, and its log-likelihood.

    Args:
        model: whose head makes the logits.
        hidden: (targets, hidden_size).
        targets: ids, (targets,).
    """
    right, likelihoods = [], []
    for some, wanted in zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
        logits = model.lm_head(some)
        right.append(logits.argmax(-1) == wanted)
        exact = torch.promote_types(logits.dtype, torch.float32)
        likelihood = torch.log_softmax(logits.to(exact), dim=-1)
        likelihoods.append(likelihood.gather(1, wanted[:, None])[:, 0].double())
    return torch.cat(right).cpu().numpy(), torch.cat(likelihoods).cpu().numpy()


def score_items(
    model: HybridModel,
    vocabulary: Encoder,
    items: Sequence[Item],
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Asks a model items; see `match_items` for the arguments and `summarise` for the result."""
    encoded = encode_items(vocabulary, items)
    return summarise(items, encoded, match_items(model, encoded, batch_tokens, advance))


def check_lengths(name: str, items: Sequence[EncodedItem], max_tokens: int, remedy: str) -> None:
    """Checks that no item is longer than what a model was trained on.

    Raises:
        ValueError: one is; the text ends with the remedy.
    """
    longest = max(len(item.tokens) - 1 for item in items)
    if longest > max_tokens:
        raise ValueError(
            f"{name}: an item has {longest:,} tokens and the model was trained on sequences of "
            f"{max_tokens:,}; {remedy}"
        )


def summarise(
    items: Sequence[Item], encoded: Sequence[EncodedItem], matches: Sequence[Match]
) -> dict[str, Any]:
    """Returns the share of exact answers, in all and by label.

    Returns:
        `right`, `asked`, `accuracy`, `interval` (Wilson, 95%), `token_accuracy` (share of the
        answers' tokens that are likeliest behind the true ones), and `groups`: the same for each
        combination of labels, ascending, with the labels and `tokens`, the longest item.
    """
    groups: dict[tuple[tuple[str, int | str], ...], list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(tuple(item.labels.items()), []).append(number)
    rows = []
    for labels, numbers in sorted(groups.items()):
        longest = max(len(encoded[number].tokens) for number in numbers)
        scored = _scored([matches[number] for number in numbers])
        rows.append({**dict(labels), "tokens": longest, **scored})
    return {**_scored(matches), "groups": rows}


def _scored(matches: Sequence[Match]) -> dict[str, Any]:
    right = sum(match.exact for match in matches)
    tokens = sum(match.tokens for match in matches)
    return {
        **share(right, len(matches)),
        "token_accuracy": sum(match.right_tokens for match in matches) / tokens,
    }
