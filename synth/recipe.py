"""What is to be synthesized: problems, samples of each, and how they are drawn."""

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from synth.problems import SPLITS, Family, Problem, keyed, take
from synth.prompt_layout import Layout, PlainLayout
from synth.sampling import Request, Sampling

FORMAT = 1
"""Of the dataset's files."""
VERIFY_VERSION = 1
"""Of the rules and what they see."""
LIBRARIES = ("reasoning-gym", "math-verify", "pyarrow")


@dataclass(frozen=True)
class SynthRecipe:
    """A run of synthesis.

    Raises:
        ValueError: a setting is out of its range.
    """

    name: str
    families: tuple[Family, ...]
    num_problems: int
    """Of each family."""
    num_samples: int
    """For each problem, every one with a seed of its own."""
    sampling: Sampling = field(default_factory=Sampling)
    layout: Layout = field(default_factory=PlainLayout)
    split: str = "sft"
    seed: int = 0
    """Of problems and samples."""
    min_accepted: int = 1
    """Traces; with fewer the run stops before anything is committed."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(
                f"{self.name}: split is {self.split!r}; wanted one of: {', '.join(SPLITS)}"
            )
        names = [family.name for family in self.families]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{self.name}: families are {names}; wanted one or more, each once")
        if self.num_problems < 1 or self.num_samples < 1:
            raise ValueError(
                f"{self.name}: num_problems is {self.num_problems} and num_samples is "
                f"{self.num_samples}; wanted 1 or more of each"
            )

    def identity(self, revision: str) -> dict[str, Any]:
        """Returns all that the dataset depends on beside the answers, ready for JSON.

        Families stand where a curated dataset has its readers, generation and verification where
        it has its steps.
        """
        return {
            "name": self.name,
            "format": FORMAT,
            "readers": [_described(family, family.version) for family in self.families],
            "steps": [
                _described(self.sampling, FORMAT) | {"name": "Generate"},
                {"name": "Verify", "version": VERIFY_VERSION, "parameters": {}},
            ],
            "num_problems": self.num_problems,
            "num_samples": self.num_samples,
            "layout": repr(self.layout),
            "split": self.split,
            "seed": self.seed,
            "min_accepted": self.min_accepted,
            "model_revision": revision,
            "keep_dropped": "all",
            "sample": 1.0,
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }

    def problems(self) -> dict[str, Problem]:
        """Returns the problems by id.

        Raises:
            ValueError: a family has not as many.
        """
        found: dict[str, Problem] = {}
        for family in self.families:
            chosen = take(family, self.split, self.seed, self.num_problems)
            found |= {problem.id: problem for problem in chosen}
        return found

    def requests(self, problems: dict[str, Problem], revision: str) -> Iterator[Request]:
        """Yields every sample that is wanted."""
        for problem in problems.values():
            first = keyed("sample", self.seed, problem.id) >> 14  # 48 bits: exact in any JSON
            prompt = self.layout.prompt(problem.question)
            for number in range(self.num_samples):
                yield Request(
                    problem.id,
                    self.layout.path,
                    prompt,
                    self.layout.options(),
                    revision,
                    self.sampling,
                    first + number,
                )


def _described(part: Family | Sampling, version: int) -> dict[str, Any]:
    parameters = {field.name: getattr(part, field.name) for field in fields(part)}
    return {"name": type(part).__name__, "version": version, "parameters": parameters}
