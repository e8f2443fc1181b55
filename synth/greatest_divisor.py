"""Greatest common divisors of two numbers below a hundred, by their prime factors.

Factors of a hundred numbers are a table that a model of a few million parameters learns by heart.
Euclid's algorithm is shorter to say, but the same models never learned to divide: of 1,000 answers
one had right steps.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, prod
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
    version = 2
    document_share = 0.3

    max_value: int = 99

    def entry(self, key: int) -> dict[str, Any]:
        """Returns reasoning-gym's entry of a key."""
        config = GCDConfig(2, 2, min_value=2, max_value=self.max_value, seed=key, size=1)
        return GCDDataset(config)[0]

    def numbers(self, entry: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the two numbers."""
        return tuple(entry["metadata"]["numbers"])

    def solution(self, problem: Problem) -> Solution:
        """Writes the prime factors of each number, then those that they share."""
        return _written(problem.numbers, [_factors(number) for number in problem.numbers])

    def wrong_solution(self, problem: Problem, seed: int) -> Solution:
        """Writes a solution in which one prime factor is wrong and leads to another divisor."""
        random = Random(keyed("wrong", seed, problem.id))
        right = [_factors(number) for number in problem.numbers]
        primes = sorted({2, 3, 5, 7, *right[0], *right[1]})
        slips = []
        for number, place in [(n, i) for n in (0, 1) for i in range(len(right[n]))]:
            for prime in primes:
                factors = [list(part) for part in right]
                factors[number][place] = prime
                factors[number].sort()
                if str(gcd(*map(prod, factors))) != problem.answer:
                    slips.append(factors)
        return _written(problem.numbers, random.choice(slips))

    def score(self, problem: Problem, answer: str) -> float:
        """Returns reasoning-gym's score: 1.0 for the very digits."""
        dataset = GCDDataset(GCDConfig(seed=0, size=1))
        return float(dataset.score_answer(answer, {"answer": problem.answer}))


def _factors(number: int) -> list[int]:
    """Returns the prime factors of a number from 2 up, ascending, each as often as it divides."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


def _written(numbers: tuple[int, ...], factors: list[list[int]]) -> Solution:
    lines = [f"{n} = {_product(part)}." for n, part in zip(numbers, factors, strict=True)]
    left, shared = list(factors[1]), []
    for factor in factors[0]:
        if factor in left:
            left.remove(factor)
            shared.append(factor)
    answer = str(prod(shared))
    lines.append(f"Shared: {_product(shared)} = {answer}." if shared else "Shared: 1.")
    return Solution(" ".join(lines), answer)


def _product(factors: list[int]) -> str:
    return " * ".join(map(str, factors))
