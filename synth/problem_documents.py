"""Solved problems as pretraining text, some of them wrong: from it a small model learns to solve.

A stated share of the solutions is wrong: a corpus has errors, and a generator that is always right
would leave verification nothing to do.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.atomic import written
from synth.families import FAMILIES
from synth.problems import Family, Problem, keyed, take
from synth.prompt_layout import PlainLayout


def problem_documents(
    num_documents: int,
    seed: int,
    wrong_share: float = 0.1,
    families: Sequence[Family] = tuple(FAMILIES.values()),
    split: str = "train",
) -> Iterator[dict[str, Any]]:
    """Yields documents, one for each problem, in an order drawn by the seed.

    Args:
        num_documents: of all families together, shared out by their `document_share`.
        seed: of problems, order and errors.
        wrong_share: of the documents of each family, rounded to whole documents.
        families: what to ask.
        split: none of the others' problems is asked.

    Yields:
        `id` (of the problem), `text`, `family`, `correct`.

    Raises:
        ValueError: a family has not as many problems, or a share is no share.
    """
    if not 0 <= wrong_share <= 1:
        raise ValueError(f"problem_documents: wrong_share is {wrong_share}; wanted 0 to 1")
    if num_documents < 1 or not families:
        raise ValueError(
            f"problem_documents: {num_documents} documents of {len(families)} families are wanted; "
            f"wanted 1 or more of each"
        )
    asked: list[tuple[int, Family, Problem, bool]] = []
    for family, number in zip(families, _shared_out(num_documents, families), strict=True):
        chosen = take(family, split, seed, number)
        marks = sorted(keyed("correct", seed, problem.id) for problem in chosen)
        limit = [*marks, 1 << 62][round(wrong_share * number)]
        for problem in chosen:
            correct = keyed("correct", seed, problem.id) >= limit
            asked.append((keyed("order", seed, problem.id), family, problem, correct))
    layout = PlainLayout()
    for _, family, problem, correct in sorted(asked, key=lambda item: item[0]):
        solution = family.solution(problem) if correct else family.wrong_solution(problem, seed)
        text = layout.document(problem.question, solution)
        yield {"id": problem.id, "text": text, "family": family.name, "correct": correct}


def write_problem_documents(
    out: Path,
    num_documents: int,
    seed: int,
    wrong_share: float = 0.1,
    families: Sequence[Family] = tuple(FAMILIES.values()),
    split: str = "train",
) -> int:
    """Writes `problem_documents` as JSON Lines, whole or not at all; returns the bytes of text.

    Raises:
        ValueError: see `problem_documents`.
    """
    size = 0
    with written(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in problem_documents(num_documents, seed, wrong_share, families, split):
            size += len(row["text"].encode())
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return size


def _shared_out(number: int, families: Sequence[Family]) -> list[int]:
    """Returns whole numbers in proportion to the shares, `number` together."""
    total = sum(family.document_share for family in families)
    borders, place = [0], 0.0
    for family in families:
        place += family.document_share
        borders.append(round(number * place / total))
    return [end - start for start, end in pairwise(borders)]
