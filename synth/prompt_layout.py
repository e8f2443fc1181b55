r"""How a problem is asked and how an answer is read: as plain text, or as a chat.

A model that was only pretrained continues `Question: ...\nReasoning:` as its corpus does; one that
was fine-tuned on messages gets its own chat template, applied by the server.
"""

import re
from dataclasses import dataclass
from typing import Any

from synth.problems import Solution

QUESTION, REASONING, ANSWER = "Question:", "Reasoning:", "Answer:"
THINK, END_THINK = "<think>", "</think>"

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


@dataclass(frozen=True)
class Reading:
    """What a generated text says."""

    reasoning: str
    answer: str | None
    """The final answer as written; None where none is given."""


@dataclass(frozen=True)
class PlainLayout:
    """Question, reasoning and answer as three lines of text."""

    path = "/v1/completions"

    def document(self, question: str, solution: Solution) -> str:
        """Returns a whole solved problem, as pretraining text has it."""
        prompt = self.prompt(question)["prompt"]
        return f"{prompt} {solution.reasoning}\n{ANSWER} {solution.answer}"

    def prompt(self, question: str) -> dict[str, Any]:
        """Returns what a request says of the question."""
        return {"prompt": f"{QUESTION} {question}\n{REASONING}"}

    def options(self) -> dict[str, Any]:
        """Returns what a request asks for beside the text."""
        return {"logprobs": 0}

    def received(self, choice: dict[str, Any]) -> tuple[str, list[float]]:
        """Returns text and log-probabilities of the tokens of an answer."""
        return choice["text"], choice["logprobs"]["token_logprobs"]

    def read(self, text: str) -> Reading:
        """Parts a generated text; only a line that starts with `Answer:` is one."""
        reasoning, mark, answer = text.rpartition(f"\n{ANSWER}")
        if not mark:
            return Reading(text.strip(), None)
        return Reading(reasoning.strip(), answer.strip() or None)


@dataclass(frozen=True)
class ChatLayout:
    """The model's own chat template; the reasoning stands before `</think>`."""

    path = "/v1/chat/completions"

    def prompt(self, question: str) -> dict[str, Any]:
        """Returns what a request says of the question."""
        return {"messages": [{"role": "user", "content": question}]}

    def options(self) -> dict[str, Any]:
        """Returns what a request asks for beside the text."""
        return {"logprobs": True}

    def received(self, choice: dict[str, Any]) -> tuple[str, list[float]]:
        """Returns text and log-probabilities of the tokens of an answer."""
        tokens = choice["logprobs"]["content"]
        return choice["message"]["content"] or "", [token["logprob"] for token in tokens]

    def read(self, text: str) -> Reading:
        r"""Parts a generated text; the answer is what \boxed{} or `Answer:` says, or all of it."""
        thought, mark, content = text.rpartition(END_THINK)
        reasoning = (thought if mark else "").strip().removeprefix(THINK).strip()
        content = content.removesuffix("</s>").removesuffix("<SPECIAL_12>").strip()
        boxed = _BOXED.findall(content)
        answer = boxed[-1] if boxed else content.rpartition(ANSWER)[2]
        return Reading(reasoning, answer.strip() or None)


Layout = PlainLayout | ChatLayout
