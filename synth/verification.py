"""Is a generated solution right? Several verifiers say, and all that they say is kept.

A trace is accepted if all verifiers agree that its answer is right, it shows its reasoning, and
every equation in the reasoning holds: a right answer after wrong steps teaches wrong steps.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from synth.families import find_family
from synth.math_verifier import MathVerifier
from synth.problems import Problem
from synth.prompt_layout import Reading

VERIFIERS = ("exact", "reasoning_gym", "math_verify")

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = r"-?[0-9]{1,18}"
_EXPRESSION = rf"{_NUMBER}(?: [-+*] {_NUMBER})*"
# whole equations of integers only: neither a part of one with other things in it nor a decimal
_EQUATION = re.compile(
    rf"(?<![\w.])(?<![-+*/^%] ){_EXPRESSION}(?: = {_EXPRESSION})+(?!\w|\.[0-9]| [-+*/^%])"
)


@dataclass(frozen=True)
class Judgement:
    """What the verifiers say of one solution."""

    verdicts: Mapping[str, bool | None]
    """By verifier; None where it was not asked or failed."""
    wrong_steps: int
    """Equations in the reasoning that do not hold."""
    broken: Mapping[str, bool]
    """By rule, in order."""

    @property
    def reason(self) -> str | None:
        """The first broken rule; None for an accepted solution."""
        return next((rule for rule, broken in self.broken.items() if broken), None)


@dataclass(frozen=True)
class Evidence:
    """What the rules are asked about."""

    finish_reason: str
    reading: Reading
    verdicts: Mapping[str, bool | None]
    wrong_steps: int

    @property
    def said(self) -> set[bool]:
        """The different verdicts."""
        return {verdict for verdict in self.verdicts.values() if verdict is not None}


# Names are data: they stand in ledgers. The reason for a rejection is the first that is true.
RULES: dict[str, Callable[[Evidence], bool]] = {
    "truncated": lambda e: e.finish_reason == "length",
    "no_answer": lambda e: e.reading.answer is None,
    "wrong_answer": lambda e: e.said == {False},
    "verifier_disagrees": lambda e: len(e.said) > 1,
    "verifier_failed": lambda e: e.reading.answer is not None and None in e.verdicts.values(),
    "no_reasoning": lambda e: not e.reading.reasoning,
    "wrong_step": lambda e: e.wrong_steps > 0,
}


def judge(
    problem: Problem, reading: Reading, finish_reason: str, verifier: MathVerifier
) -> Judgement:
    """Asks every verifier and every rule about a solution."""
    verdicts: dict[str, bool | None] = dict.fromkeys(VERIFIERS)
    if reading.answer is not None:
        score = find_family(problem.family).score(problem, reading.answer)
        verdicts["exact"] = is_exact(problem.answer, reading.answer)
        verdicts["reasoning_gym"] = score == 1.0
        verdicts["math_verify"] = verifier.accepts(problem.answer, reading.answer)
    evidence = Evidence(finish_reason, reading, verdicts, wrong_steps(reading.reasoning))
    broken = {name: rule(evidence) for name, rule in RULES.items()}
    return Judgement(verdicts, evidence.wrong_steps, broken)


def is_exact(expected: str, answer: str) -> bool:
    """Says whether an answer is the expected integer, written as nothing but an integer."""
    return bool(_INTEGER.fullmatch(answer)) and int(answer) == int(expected)


def wrong_steps(reasoning: str) -> int:
    """Counts neighbours in equations of integers, with + - *, that are not equal."""
    wrong = 0
    for equation in _EQUATION.findall(reasoning):
        values = [_value(side) for side in equation.split(" = ")]
        wrong += sum(one != other for one, other in pairwise(values))
    return wrong


def _value(expression: str) -> int:
    total, product, sign = 0, 1, 1
    for token in expression.split(" "):
        if token == "*":
            continue
        if token in "+-":
            total, product, sign = total + sign * product, 1, 1 if token == "+" else -1
        else:
            product *= int(token)
    return total + sign * product
