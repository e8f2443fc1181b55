"""Greedy generation in batches, for evaluation; serving is vLLM's work.

Prompts of a batch are read side by side, the shortest whole and then token by token, so none needs
padding on the left, which a recurrent state would have to skip: where a prompt goes on, its next
token stands in place of the model's. A sequence that has ended stays in its batch until all have.
"""

from collections.abc import Sequence

import torch

from training_hook.model import HybridModel


@torch.no_grad()
def generate(
    model: HybridModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop: Sequence[int],
    batch_size: int = 128,
) -> list[list[int]]:
    """Returns the greedy continuation of each prompt, without the stop token.

    Args:
        model: on any device; it is put into evaluation mode.
        prompts: token ids, one or more each.
        max_tokens: longest continuation.
        stop: ids that end a continuation.
        batch_size: prompts of about one length that are decoded together.

    Raises:
        ValueError: a prompt is empty.
    """
    if not all(prompts):
        raise ValueError("generate: a prompt has no tokens; wanted one or more in each")
    model.eval()
    results: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        found = _decode(model, [list(prompts[i]) for i in part], max_tokens, set(stop))
        for number, ids in zip(part, found, strict=True):
            results[number] = ids
    return results


def _decode(
    model: HybridModel, prompts: list[list[int]], max_tokens: int, stop: set[int]
) -> list[list[int]]:
    device = model.lm_head.weight.device
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    padded = torch.tensor([p + [0] * (longest - len(p)) for p in prompts], device=device)
    ends = torch.tensor(lengths, device=device)[:, None]
    tokens = padded[:, : min(lengths)]
    state = model.decode_state(len(prompts))
    open_ = set(range(len(prompts))) if max_tokens else set()
    found: list[list[int]] = [[] for _ in prompts]
    place = tokens.shape[1]
    while open_:
        logits, state = model(tokens, None, state)
        tokens = logits[:, -1].argmax(-1, keepdim=True)
        if place < longest:
            tokens = torch.where(ends > place, padded[:, place : place + 1], tokens)
        for row, token in enumerate(tokens.flatten().tolist()):
            if row not in open_ or place < lengths[row]:
                continue
            if token not in stop:
                found[row].append(token)
            if token in stop or len(found[row]) == max_tokens:
                open_.remove(row)
        place += 1
    return found
