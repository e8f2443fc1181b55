"""Is what a server says what our own model says? Asked before a server is used.

The folder's probe.json holds prompts, the tokens that our forward pass decodes greedily after them
and their log-probabilities. The server is given prompt and tokens together (teacher forcing), so
one difference cannot hide or cause others.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synth.served_model import PROBE, ServedModel, call

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
"""In log-probability. FP32 was seen to differ by 5e-4 at most over 27,000 tokens, BF16 by 0.046."""


@dataclass(frozen=True)
class Agreement:
    """How a server's log-probabilities compare with expected ones."""

    tokens: int
    not_first: int
    """Tokens that are not the server's argmax, but within the tolerance of it."""
    largest_difference: float
    """Of log-probabilities, absolute."""


def prompt_log_probabilities(server: ServedModel, ids: list[int]) -> list[tuple[float, float]]:
    """Returns (log-probability, that of the best token) of each id but the first.

    Raises:
        RuntimeError: the server refused.
        OSError: the server does not answer.
    """
    body = {"model": server.name, "prompt": ids, "max_tokens": 1, "temperature": 0.0}
    answer = call(server.url, "/v1/completions", body | {"prompt_logprobs": 1})
    rows: list[dict[str, dict[str, Any]]] = answer["choices"][0]["prompt_logprobs"][1:]
    return [
        (row[str(token)]["logprob"], max(entry["logprob"] for entry in row.values()))
        for token, row in zip(ids[1:], rows, strict=True)
    ]


def check_server(server: ServedModel, folder: Path, dtype: str) -> Agreement:
    """Compares a server with the folder's probe.json.

    Args:
        server: the server.
        folder: the Hugging Face folder that it was started with.
        dtype: of its arithmetic, which sets the tolerance.

    Raises:
        ValueError: the folder has no probes.
        RuntimeError: a greedy token of ours is worse than the server's best by more than the
            tolerance, or a log-probability differs by more.
    """
    tolerance = TOLERANCES[dtype]
    probes = json.loads((folder / PROBE).read_text("utf-8"))["probes"]
    if not probes:
        raise ValueError(
            f"check_server: {folder / PROBE} has no probes, so nothing can be compared; "
            f"export the model with prompts"
        )
    tokens, not_first, largest = 0, 0, 0.0
    for number, probe in enumerate(probes):
        prompt, greedy = probe["prompt_ids"], probe["greedy_ids"]
        found = prompt_log_probabilities(server, prompt + greedy)[len(prompt) - 1 :]
        for place, (ours, (theirs, best)) in enumerate(
            zip(probe["log_probabilities"], found, strict=True)
        ):
            if best - theirs > tolerance or abs(ours - theirs) > tolerance:
                raise RuntimeError(
                    f"check_server: {server.url} does not compute what the model computes. Probe "
                    f"{number}, token {place} (id {greedy[place]}): log-probability {theirs:.6f}, "
                    f"its best token {best:.6f}, ours {ours:.6f}; wanted at most {tolerance} "
                    f"apart. Check the server's dtype and flags."
                )
            tokens, not_first = tokens + 1, not_first + (theirs < best)
            largest = max(largest, abs(ours - theirs))
    return Agreement(tokens, not_first, largest)
