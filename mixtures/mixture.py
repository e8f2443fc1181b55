"""A mixture: token datasets with weights, repetition caps and phases, resolved into a plan.

A mixture is written down as names and weights (identity); where the token datasets lie is said when
it is resolved. Resolving packs every part, counts what each phase draws from it and refuses what
would repeat a part too often, all before a training step is spent.
"""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixtures.artifact import file_entry, fingerprint, finished, new_folder
from mixtures.layout import MANIFEST
from mixtures.plan_writer import write_plan
from mixtures.resolution import resolve
from mixtures.token_dataset import TokenDataset
from pipelines.dataset import write_json

LOW_EFFICIENCY = 0.95

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A token dataset's place in a mixture."""

    name: str
    weight: float
    """Share of the samples, beside the other parts' weights."""
    max_repetition: float = 4.0
    """Times that its packs may be seen. Up to 4 repetitions are nearly as good as new data
    (Muennighoff et al. 2023, "Scaling data-constrained language models", arXiv:2305.16264)."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the samples with weights of its own: a step of a curriculum."""

    name: str
    share: float
    """Share of the mixture's samples, beside the other phases' shares."""
    weights: tuple[tuple[str, float], ...]
    """(part, weight) pairs; a part that is not named is left out."""


@dataclass(frozen=True)
class Mixture:
    """What a stream is made of.

    Raises:
        ValueError: a name appears twice or is unknown, or a number is out of its range.
    """

    name: str
    parts: tuple[Part, ...]
    sequence_length: int
    """Targets of a sample; it holds one token more."""
    phases: tuple[Phase, ...] = ()
    """In order; without any, the parts' weights hold all the time."""
    num_samples: int | None = None
    """Samples of all phases; if not given, as many as the repetition caps allow."""
    holdout_share: float = 0.02
    """Share of the documents kept for evaluation, drawn by keyed hash of the id."""
    holdout_seed: int = 0
    """Apart from the order's seed, so that mixtures can be compared on the same documents."""
    max_documents: int = 64
    """Documents in a sample, at most: the width of a batch's boundaries."""

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        for kind, found in (("part", names), ("phase", [phase.name for phase in self.phases])):
            if len(set(found)) < len(found):
                raise ValueError(f"{self.name}: a {kind} appears twice in: {', '.join(found)}")
        numbers = {
            "number of parts": (len(names), 1),
            "sequence_length": (self.sequence_length, 2),
            "max_documents": (self.max_documents, 1),
            "num_samples": (1 if self.num_samples is None else self.num_samples, 1),
        }
        for what, (number, least) in numbers.items():
            if number < least:
                raise ValueError(f"{self.name}: {what} is {number}; wanted at least {least}")
        if not 0 <= self.holdout_share < 1:
            raise ValueError(
                f"{self.name}: holdout_share is {self.holdout_share}; wanted at least 0, below 1"
            )
        for part in self.parts:
            self._check_positive(f"max_repetition of part {part.name}", part.max_repetition)
        for phase in self.stages:
            self._check_positive(f"share of phase {phase.name}", phase.share)
            for name, weight in phase.weights:
                if name not in names:
                    raise ValueError(
                        f"{self.name}: phase {phase.name} weighs {name!r}; "
                        f"parts here: {', '.join(names)}"
                    )
                if not 0 <= weight < math.inf:
                    raise ValueError(
                        f"{self.name}: the weight of {name} is {weight}; wanted at least 0"
                    )
            self._check_positive(
                f"sum of weights in phase {phase.name}", sum(w for _, w in phase.weights)
            )
        weighed = {name for phase in self.stages for name, weight in phase.weights if weight > 0}
        if unused := [name for name in names if name not in weighed]:
            raise ValueError(f"{self.name}: no phase draws from {', '.join(unused)}")

    def _check_positive(self, what: str, number: float) -> None:
        if not 0 < number < math.inf:
            raise ValueError(f"{self.name}: the {what} is {number}; wanted above 0")

    @property
    def stages(self) -> tuple[Phase, ...]:
        """The phases, or the one that the parts' weights make."""
        if self.phases:
            return self.phases
        return (Phase("all", 1.0, tuple((part.name, part.weight) for part in self.parts)),)


def mix(
    mixture: Mixture, token_datasets: Mapping[str, str | Path], out: str | Path, seed: int
) -> dict[str, Any]:
    """Resolves a mixture into a folder that streams are read from; returns its manifest.

    The manifest's `table` says for each phase and part the samples, tokens and epochs, and its
    `parts` the packs, their efficiency and the repetition in all.

    Args:
        mixture: parts, weights and phases.
        token_datasets: folder of each part's token dataset by the part's name.
        out: folder to write; one that an equal request made is taken as it is.
        seed: of every order.

    Raises:
        ValueError: a part has no token dataset, they differ in vocabulary, a part would be repeated
            more often than it may, or `out` holds something else.
    """
    out = Path(out)
    names = [part.name for part in mixture.parts]
    if set(names) != set(token_datasets):
        raise ValueError(
            f"{mixture.name}: token datasets are given for {', '.join(token_datasets)}; "
            f"wanted one for each part: {', '.join(names)}"
        )
    opened = [TokenDataset(token_datasets[name]) for name in names]
    _check_vocabulary(mixture.name, opened)
    request = {
        "mixture": _plain(asdict(mixture)),
        "seed": seed,
        "token_datasets": {n: d.fingerprint for n, d in zip(names, opened, strict=True)},
        "version": 1,
    }
    if there := finished(out / MANIFEST, "mixture", request):
        return there
    with new_folder(out) as folder:
        parts = write_plan(mixture, opened, folder)
        resolution = resolve(mixture, [part["packs"] for part in parts], seed)
        for part, repetition in zip(parts, resolution["repetitions"], strict=True):
            part["repetition"] = repetition
            if part.get("too_long", {}).get("documents"):
                logger.warning(
                    "%s: %d of %d conversations of %s are longer than %d tokens and left out. "
                    "Raise sequence_length (%d) to train on them.",
                    mixture.name,
                    part["too_long"]["documents"],
                    part["documents"] + part["held_out"] + part["too_long"]["documents"],
                    part["name"],
                    mixture.sequence_length + 1,
                    mixture.sequence_length,
                )
            if part["efficiency"] < LOW_EFFICIENCY:
                logger.warning(
                    "%s: packs of %s hold tokens in %.1f%% of their places. Raise max_documents "
                    "(%d) where documents are short, change sequence_length (%d) where they are "
                    "all a little longer than half of it.",
                    mixture.name,
                    part["name"],
                    100 * part["efficiency"],
                    mixture.max_documents,
                    mixture.sequence_length,
                )
        files = [file_entry(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        first = opened[0].manifest
        manifest = {
            "request": request,
            "fingerprint": fingerprint([request, files]),
            "name": mixture.name,
            "seed": seed,
            "sequence_length": mixture.sequence_length,
            "max_documents": mixture.max_documents,
            "num_samples": resolution["num_samples"],
            "tokens": resolution["num_samples"] * mixture.sequence_length,
            "dtype": first["dtype"],
            "vocabulary": first["request"]["vocabulary"],
            "vocabulary_size": first["vocabulary_size"],
            "end_of_document": first["end_of_document"],
            "parts": parts,
            "phases": resolution["phases"],
            "table": resolution["table"],
            "files": files,
            # where the tokens lay, seen from here: no identity, a stream may be told otherwise
            "paths": {
                name: os.path.relpath(dataset.path.resolve(), out.resolve())
                for name, dataset in zip(names, opened, strict=True)
            },
        }
        write_json(folder / MANIFEST, manifest)
    return manifest


def _check_vocabulary(name: str, datasets: list[TokenDataset]) -> None:
    found = {dataset.manifest["request"]["vocabulary"] for dataset in datasets}
    if len(found) > 1:
        raise ValueError(
            f"{name}: the token datasets are of {len(found)} vocabularies "
            f"({', '.join(sorted(mark[:12] for mark in found))}); wanted one. Tokenize them again "
            f"with the same."
        )


def _plain(value: Any) -> Any:
    """Returns a value as JSON gives it back: tuples are lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
