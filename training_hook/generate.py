"""Greedy generation in batches, for evaluation; serving is vLLM's work.

Sequences of one length are decoded together, so none needs padding on the left, which a recurrent
state would have to skip. A sequence that has ended stays in its batch until all have.
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
        batch_size: prompts of one length that are decoded together.

    Raises:
        ValueError: a prompt is empty.
    """
    if not all(prompts):
        raise ValueError("generate: a prompt has no tokens; wanted one or more in each")
    model.eval()
    results: list[list[int]] = [[] for _ in prompts]
    lengths: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt), []).append(number)
    for numbers in lengths.values():
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            found = _decode(model, [list(prompts[i]) for i in part], max_tokens, set(stop))
            for number, ids in zip(part, found, strict=True):
                results[number] = ids
    return results


def _decode(
    model: HybridModel, prompts: list[list[int]], max_tokens: int, stop: set[int]
) -> list[list[int]]:
    device = model.lm_head.weight.device
    tokens = torch.tensor(prompts, device=device)
    state = model.decode_state(len(prompts))
    open_ = set(range(len(prompts)))
    found: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_tokens):
        logits, state = model(tokens, None, state)
        tokens = logits[:, -1].argmax(-1, keepdim=True)
        for place, token in enumerate(tokens.flatten().tolist()):
            if place in open_:
                if token in stop:
                    open_.remove(place)
                else:
                    found[place].append(token)
        if not open_:
            break
    return found
