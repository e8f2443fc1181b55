"""Sums of two or three numbers of one or two digits, with plus and minus.

The solution says each sum again and adds tens and units apart, so every step is a copy or one that
a small model can learn by heart.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

with warnings.catch_warnings():
    # its dependency cellpylib compares with `is`, which Python says when it compiles that file
    warnings.simplefilter("ignore", SyntaxWarning)
    from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset

from synth.problems import Family, Problem, Solution, keyed

ERRORS = (-10, -2, -1, 1, 2, 10)


@dataclass(frozen=True)
class ChainSum(Family):
    """reasoning-gym's chain_sum with numbers of equal length.

    With the bounds given here there are 2.9 million problems.
    """

    name = "chain_sum"
    version = 2
    document_share = 0.7

    max_terms: int = 3
    max_digits: int = 2

    def entry(self, key: int) -> dict[str, Any]:
        """Returns reasoning-gym's entry of a key."""
        config = ChainSumConfig(
            min_terms=2,
            max_terms=self.max_terms,
            min_digits=1,
            max_digits=self.max_digits,
            seed=key,
            size=1,
        )
        return ChainSumDataset(config)[0]

    def numbers(self, entry: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the signed terms."""
        first, *rest = entry["metadata"]["expression"].split()
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return int(first), *(int(sign + term) for sign, term in pairs)

    def solution(self, problem: Problem) -> Solution:
        """Writes one sentence a term."""
        return _written(problem.numbers, [0] * (len(problem.numbers) - 1))

    def wrong_solution(self, problem: Problem, seed: int) -> Solution:
        """Writes a solution in which one sum is off by 1, 2 or 10."""
        random = Random(keyed("wrong", seed, problem.id))
        errors = [0] * (len(problem.numbers) - 1)
        errors[random.randrange(len(errors))] = random.choice(ERRORS)
        return _written(problem.numbers, errors)

    def score(self, problem: Problem, answer: str) -> float:
        """Returns reasoning-gym's score, which lets signs, zeros and decimal points pass."""
        dataset = ChainSumDataset(ChainSumConfig(seed=0, size=1))
        return float(dataset.score_answer(answer, {"answer": problem.answer}))


def _written(numbers: tuple[int, ...], errors: list[int]) -> Solution:
    wrong = [0, *accumulate(errors)]
    totals = [total + error for total, error in zip(accumulate(numbers), wrong, strict=True)]
    pairs = zip(totals, numbers[1:], totals[1:], strict=False)
    return Solution(" ".join(_sentence(*pair) for pair in pairs), str(totals[-1]))


def _sentence(total: int, term: int, result: int) -> str:
    """Returns a sum in steps; an error shows in the last of them."""
    if abs(total) < 10 and abs(term) < 10:
        return f"{_sum(total, term)} = {result}."
    tens = _tens(total), _tens(term)
    units = total - tens[0], term - tens[1]
    sides = (_sum(total, term), _sum(*tens, *units), _sum(sum(tens), sum(units)), str(result))
    return " = ".join(sides) + "."


def _tens(number: int) -> int:
    """Returns a number without its units, which keep its sign."""
    return (abs(number) // 10 * 10) * (1 if number >= 0 else -1)


def _sum(first: int, *others: int) -> str:
    return str(first) + "".join(f" {'-' if term < 0 else '+'} {abs(term)}" for term in others)
