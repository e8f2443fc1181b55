"""Greatest common divisors of two numbers below a hundred, by Euclid's algorithm."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from random import Random
from typing import Any

with warnings.catch_warnings():
    # its dependency cellpylib compares with `is`, which Python says when it compiles that file
    warnings.simplefilter("ignore", SyntaxWarning)
    from reasoning_gym.arithmetic.gcd import GCDConfig, GCDDataset

from synth.problems import Family, Problem, Solution, keyed


@dataclass(frozen=True)
class GreatestDivisor(Family):
    """reasoning-gym's gcd of two numbers from 2 up; with these bounds there are 9,604 problems."""

    name = "gcd"
    version = 1
    document_share = 0.2

    max_value: int = 99

    def entry(self, key: int) -> dict[str, Any]:
        """Returns reasoning-gym's entry of a key."""
        config = GCDConfig(2, 2, min_value=2, max_value=self.max_value, seed=key, size=1)
        return GCDDataset(config)[0]

    def numbers(self, entry: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the two numbers."""
        return tuple(entry["metadata"]["numbers"])

    def solution(self, problem: Problem) -> Solution:
        """Writes one sentence for each division of Euclid's algorithm."""
        return _written(_divisions(*_ordered(problem)))

    def wrong_solution(self, problem: Problem, seed: int) -> Solution:
        """Writes a solution in which one remainder is wrong and leads to another divisor."""
        random = Random(keyed("wrong", seed, problem.id))
        right = _divisions(*_ordered(problem))
        slips = [
            (place, wrong)
            for place, (_, divisor, _, _) in enumerate(right)
            for wrong in range(divisor)
            if str(gcd(divisor, wrong)) != problem.answer
        ]
        place, wrong = random.choice(slips)  # the first division alone always offers one
        dividend, divisor, quotient, _ = right[place]
        steps = [*right[:place], (dividend, divisor, quotient, wrong)]
        return _written(steps + (_divisions(divisor, wrong) if wrong else []))

    def score(self, problem: Problem, answer: str) -> float:
        """Returns reasoning-gym's score: 1.0 for the very digits."""
        dataset = GCDDataset(GCDConfig(seed=0, size=1))
        return float(dataset.score_answer(answer, {"answer": problem.answer}))


def _ordered(problem: Problem) -> tuple[int, int]:
    smaller, larger = sorted(problem.numbers)
    return larger, smaller


def _divisions(dividend: int, divisor: int) -> list[tuple[int, int, int, int]]:
    """Returns (dividend, divisor, quotient, remainder) down to the remainder 0."""
    steps: list[tuple[int, int, int, int]] = []
    while divisor:
        quotient, remainder = divmod(dividend, divisor)
        steps.append((dividend, divisor, quotient, remainder))
        dividend, divisor = divisor, remainder
    return steps


def _written(steps: list[tuple[int, int, int, int]]) -> Solution:
    lines = [f"{a} = {b} * {q} + {r}." for a, b, q, r in steps]
    return Solution(" ".join(lines), str(steps[-1][1]))
