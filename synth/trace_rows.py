"""The columns of a trace, and the rows of an answer in data, dropped and ledger files.

They are laid out as those of a curated dataset are, so what explains a dropped document explains a
rejected trace.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.document import RESERVED, content_hash
from pipelines.layout import FAILS, LEDGER_MATCH, LEDGER_START
from synth.journal import Answer
from synth.problems import Problem
from synth.prompt_layout import Layout, Reading
from synth.sampling import Request
from synth.verification import RULES, VERIFIERS, Judgement

DUPLICATE = "duplicate_text"
ALL_RULES = (*RULES, DUPLICATE)

MESSAGE = pa.struct(
    [("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())]
)
MADE_BY = pa.schema(
    [
        ("problem_id", pa.string()),
        ("prompt_hash", pa.string()),  # sha256
        ("model_revision", pa.string()),  # sha256
        ("seed", pa.int64()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("max_tokens", pa.int32()),
        ("stop", pa.list_(pa.string())),
        ("finish_reason", pa.string()),
    ]
)
DATA = pa.schema(
    [
        *RESERVED,
        ("messages", pa.list_(MESSAGE)),
        ("question", pa.string()),
        ("expected", pa.string()),
        ("final_answer", pa.string()),  # null where none was found
        ("generated", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        # natural logarithm, before temperature and top_p
        ("log_probabilities", pa.list_(pa.float32())),
        *MADE_BY,
    ]
)
DROPPED = DATA.append(pa.field("dropped_by", pa.string()))
SIGNALS = pa.schema(
    [
        ("n_tokens", pa.int32()),  # generated
        ("mean_log_probability", pa.float32()),  # null without tokens
        ("wrong_steps", pa.int32()),
        *((name, pa.bool_()) for name in VERIFIERS),
    ]
)
LEDGER = pa.schema(
    [
        *LEDGER_START,
        *LEDGER_MATCH,
        *MADE_BY,
        *SIGNALS,
        *((FAILS + rule, pa.bool_()) for rule in ALL_RULES),
    ]
)


@dataclass(frozen=True)
class Trace:
    """One generated sample with everything that made it and what the verifiers say."""

    problem: Problem
    request: Request
    answer: Answer
    reading: Reading
    judgement: Judgement
    matched_id: str | None
    """An accepted trace of the same problem with the same text."""

    @property
    def dropped_by(self) -> str | None:
        """The rule that rejects the trace; None for an accepted one."""
        return self.judgement.reason or (DUPLICATE if self.matched_id else None)

    def text_key(self) -> bytes:
        """Returns a 128-bit hash of problem and text."""
        data = f"{self.problem.id} {self.answer.text.strip()}".encode()
        return hashlib.blake2b(data, digest_size=16).digest()

    def document(self, layout: Layout, split: str) -> dict[str, Any]:
        """Returns the row for data or dropped files."""
        text = self._text(layout)
        user = {"role": "user", "content": self.problem.question, "reasoning_content": None}
        assistant = {
            "role": "assistant",
            "content": self.reading.answer or "",
            "reasoning_content": self.reading.reasoning,
        }
        return (
            dict.fromkeys(RESERVED.names)
            | {
                "id": self.request.identity,
                "text": text,
                "source": self.problem.family,
                "origin": self._origin(text, split),
                "language": "en",
                "messages": [user, assistant],
                "question": self.problem.question,
                "expected": self.problem.answer,
                "final_answer": self.reading.answer,
                "generated": self.answer.text,
                "token_ids": self.answer.token_ids,
                "log_probabilities": self.answer.log_probabilities,
                "dropped_by": self.dropped_by,
            }
            | self._made_by()
        )

    def ledger(self, layout: Layout, split: str) -> dict[str, Any]:
        """Returns the row for ledger files."""
        text = self._text(layout)
        likelihoods = self.answer.log_probabilities
        row: dict[str, Any] = {
            "id": self.request.identity,
            "source": self.problem.family,
            "origin": self._origin(text, split),
            "text_bytes": len(text.encode()),
            "dropped_by": self.dropped_by,
            "matched_id": self.matched_id,
            "similarity": 1.0 if self.matched_id else None,
            "n_tokens": len(likelihoods),
            "mean_log_probability": sum(likelihoods) / len(likelihoods) if likelihoods else None,
            "wrong_steps": self.judgement.wrong_steps,
        }
        fails: dict[str, bool | None] = {
            FAILS + name: broken for name, broken in self.judgement.broken.items()
        }
        # asked of accepted traces only
        fails[FAILS + DUPLICATE] = None if self.judgement.reason else self.matched_id is not None
        return row | self._made_by() | dict(self.judgement.verdicts) | fails

    def _text(self, layout: Layout) -> str:
        prompt = layout.prompt(self.problem.question)
        return prompt.get("prompt", f"{self.problem.question}\n") + self.answer.text

    def _origin(self, text: str, split: str) -> dict[str, Any]:
        path = f"{self.problem.family}/{split}/{self.problem.id}"
        hashed = content_hash(text.encode())
        return {"path": path, "offset": None, "length": None, "content_hash": hashed}

    def _made_by(self) -> dict[str, Any]:
        sampling = self.request.sampling
        return {
            "problem_id": self.problem.id,
            "prompt_hash": self.request.prompt_hash,
            "model_revision": self.request.revision,
            "seed": self.request.seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop": sampling.stop,
            "finish_reason": self.answer.finish_reason,
        }
