"""What is asked of a model, and its identity: prompt, model revision, sampling and seed."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Raises:
        ValueError: a setting is out of its range.
    """

    temperature: float = 0.8
    """0 takes the likeliest token."""
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ("\nQuestion:",)
    """Texts that end an answer, beside the model's own end."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"Sampling: temperature is {self.temperature}; wanted 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling: top_p is {self.top_p}; wanted above 0 and up to 1")
        if self.max_tokens < 1:
            raise ValueError(f"Sampling: max_tokens is {self.max_tokens}; wanted 1 or more")


@dataclass(frozen=True)
class Request:
    """One sample that is wanted."""

    problem_id: str
    path: str
    """Of the endpoint."""
    prompt: dict[str, Any]
    """The part of the body that says what is asked."""
    options: dict[str, Any]
    """What is to be returned beside the text; no part of the identity."""
    revision: str
    """Of the model."""
    sampling: Sampling
    seed: int

    @cached_property
    def prompt_hash(self) -> str:
        """The sha256 of endpoint and prompt."""
        return _sha256([self.path, self.prompt])

    @cached_property
    def identity(self) -> str:
        """Hash of prompt, revision, sampling and seed, 32 hexadecimal digits.

        Whatever else asks for the same is the same request, and is asked once.
        """
        parts = [self.prompt_hash, self.revision, asdict(self.sampling), self.seed]
        return _sha256(parts)[:32]

    def body(self, model: str) -> dict[str, Any]:
        """Returns what is sent to a server under the model's name there."""
        drawn = asdict(self.sampling) | {"stop": list(self.sampling.stop), "seed": self.seed}
        fixed = {"n": 1, "skip_special_tokens": False, "return_token_ids": True}
        return {"model": model} | self.prompt | drawn | fixed | self.options


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
