"""What a turn of the whole wheel is, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A part of the training mixture: the documents of some kinds, and their token share."""

    name: str
    kinds: tuple[str, ...]
    """Values of the dataset's column `kind`."""
    weight: float
    sample: float = 1.0
    """Share of these documents that is tokenized."""
    max_repetition: float = 4.0
    """Above this many epochs repeated data is worth much less (Muennighoff et al. 2023)."""


@dataclass(frozen=True)
class Wheel:
    """From a curation recipe to a trained and exported model."""

    name: str
    recipe: str
    """The curation recipe, module:function."""
    parts: tuple[Part, ...]
    run: str
    """The pretraining run, module:function; vocabulary size, length and tokens follow from it."""
    seed: int
