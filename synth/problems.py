"""Problems with exact answers, from narrow families, parted so that none is trained and asked.

A problem's split is a keyed hash of what it asks, not of a seed or of the order of generation:
train, sft and heldout share no problem whatever is generated, and "47 + 38" stands where "38 + 47"
does. (Steps of a solution may be small problems of another split: 7 + 8 = 15 is everywhere.)
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.document import document_ids

SPLITS = {"train": 0.7, "sft": 0.2, "heldout": 0.1}
"""Share of all possible problems: pretraining text, reasoning traces, evaluation."""

BARREN_TRIES = 2_000
"""Draws in a row without a new problem after which a family counts as used up."""


@dataclass(frozen=True)
class Problem:
    """A question with one right answer."""

    id: str
    """Hash of family and question, 32 hexadecimal digits."""
    family: str
    question: str
    answer: str
    numbers: tuple[int, ...]
    """What the question is about: the signed terms of a sum, the numbers of a divisor."""


@dataclass(frozen=True)
class Solution:
    """A written-out solution."""

    reasoning: str
    answer: str


@dataclass(frozen=True)
class Family(ABC):
    """A kind of problem: a frozen dataclass whose fields bound its problems.

    Generators and questions are reasoning-gym's, so that its scorers apply.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    document_share: ClassVar[float]
    """Of the pretraining text that `problem_documents` writes."""

    @abstractmethod
    def entry(self, key: int) -> dict[str, Any]:
        """Returns reasoning-gym's entry of a key: question, answer and metadata."""

    @abstractmethod
    def numbers(self, entry: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns what an entry's question is about."""

    @abstractmethod
    def solution(self, problem: Problem) -> Solution:
        """Writes the solution out, step by step."""

    @abstractmethod
    def wrong_solution(self, problem: Problem, seed: int) -> Solution:
        """Writes a solution with one wrong step, from which all later ones follow."""

    @abstractmethod
    def score(self, problem: Problem, answer: str) -> float:
        """Returns reasoning-gym's score of an answer, 1.0 for a right one."""

    def problem(self, key: int) -> Problem:
        """Returns the problem of a key; other keys may give the same one."""
        entry = self.entry(key)
        question = entry["question"]
        found = document_ids("problem", [self.name], [question])[0].as_py()
        return Problem(found, self.name, question, entry["answer"], self.numbers(entry))


def keyed(*parts: object) -> int:
    """Returns a 62-bit hash of the parts: the same on any machine and in any order of asking."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = str(part).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little") >> 2


def split_of(problem: Problem) -> str:
    """Returns the split of a problem; the order of its numbers does not matter."""
    place = keyed("split", problem.family, sorted(problem.numbers)) / 2**62
    first, *others = SPLITS
    border = SPLITS[first]
    for name in others:
        if place < border:
            return first
        first, border = name, border + SPLITS[name]
    return first


def problems(family: Family, split: str, seed: int) -> Iterator[Problem]:
    """Yields distinct problems of a split; ends when hardly any new one is left.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"problems: split is {split!r}; wanted one of: {', '.join(SPLITS)}")
    seen: set[str] = set()
    barren = number = 0
    while barren < BARREN_TRIES:
        problem = family.problem(keyed("problem", seed, family.name, number) >> 14)
        number += 1
        barren += 1
        if problem.id not in seen and split_of(problem) == split:
            seen.add(problem.id)
            barren = 0
            yield problem


def take(family: Family, split: str, seed: int, number: int) -> list[Problem]:
    """Returns the first problems of a split.

    Raises:
        ValueError: the family has not as many.
    """
    found: list[Problem] = []
    if number > 0:
        for problem in problems(family, split, seed):
            found.append(problem)
            if len(found) == number:
                return found
    if number != len(found):
        raise ValueError(
            f"{family.name}: {number} problems of split {split!r} are wanted and {family!r} has "
            f"{len(found)}. Ask for fewer, or widen the family's bounds."
        )
    return found
