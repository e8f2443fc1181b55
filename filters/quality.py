"""Quality by a trained classifier: score, bin and level, and the ensemble of several.

Bins are cut so that each holds about 5 % of the text (by bytes) of the classifier's reference
documents, so bins of different classifiers can be compared although their scores cannot.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.quality_model import card_path, load_quality
from pipelines.step import Filter, Rule

NUM_BINS = 20
LEVELS = (("High", 19), ("Medium-High", 18), ("Medium", 12), ("Medium-Low", 7), ("Low", 0))
"""Level and its lowest bin; the borders between them are from memory of Nemotron-CC's paper."""


@dataclass(frozen=True)
class QualityClassifier(Filter):
    """Scores documents by a classifier that `gristmill classifier train` made, and bounds the bin.

    Adds, with column = "quality": quality_score (float32, the model's probability of "good",
    rounded to 6 decimals before it is stored or compared), quality_bin (int8, 0 to 19 for 19 cut
    points) and quality_level (string). A null text and one without a word have null in all three.
    Several classifiers in a recipe need a column name each; see QualityEnsemble.

    Raises:
        ValueError: min_bin or the levels are out of range; at the first call, the classifier is
            missing or broken.

    Source: Su et al. 2024, Nemotron-CC, arXiv:2412.02595, section 3.2 (bins); Li et al. 2024, DCLM,
    arXiv:2406.11794 (fastText as quality classifier).
    """

    model: str
    """The classifier's folder, or the classifier.json in it."""
    min_bin: int = 7
    column: str = "quality"
    levels: tuple[tuple[str, int], ...] = LEVELS

    paths = ("model",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", card_path(self.model))
        check_bins(self.name, self.column, self.min_bin, self.levels)
        score = pa.field(f"{self.column}_score", pa.float32())
        object.__setattr__(self, "adds", pa.schema([score, *bin_fields(self.column)]))
        object.__setattr__(self, "rules", (bin_rule(self.column),))

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with score, bin and level."""
        quality = load_quality(self.model)
        scores = quality.scores(batch.column("text"))
        unknown = np.isnan(scores)
        bins = pa.array(quality.bins(scores), mask=unknown)
        batch = batch.append_column(f"{self.column}_score", pa.array(scores, mask=unknown))
        return with_levels(batch, self.column, bins, self.levels)


@dataclass(frozen=True)
class QualityEnsemble(Filter):
    """Takes the highest bin of several classifiers as the document's bin, and bounds it.

    Reads `<name>_bin` of each name in `of`; adds quality_bin (int8) and quality_level (string) for
    column = "quality". A document that no classifier could score has null in both. The classifiers
    themselves get min_bin=0 in such a recipe, so that they drop nothing.

    Raises:
        ValueError: fewer than two names, or min_bin or the levels are out of range.

    Source: Su et al. 2024, Nemotron-CC, arXiv:2412.02595, section 3.2.
    """

    of: tuple[str, ...]
    min_bin: int = 7
    column: str = "quality"
    levels: tuple[tuple[str, int], ...] = LEVELS

    def __post_init__(self) -> None:
        if len(set(self.of)) < 2 or self.column in self.of:
            raise ValueError(
                f"QualityEnsemble: of is {self.of!r}; wanted the column names of two or more "
                f"classifiers, other than {self.column!r}"
            )
        check_bins(self.name, self.column, self.min_bin, self.levels)
        object.__setattr__(self, "reads", tuple(f"{name}_bin" for name in self.of))
        object.__setattr__(self, "adds", pa.schema(bin_fields(self.column)))
        object.__setattr__(self, "rules", (bin_rule(self.column),))

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the highest bin and its level."""
        bins = pc.max_element_wise(*(batch.column(name) for name in self.reads))
        return with_levels(batch, self.column, bins, self.levels)


def check_bins(step: str, column: str, min_bin: int, levels: tuple[tuple[str, int], ...]) -> None:
    """Raises ValueError where a bin is no bin, or the levels do not descend to 0."""
    if not column.isidentifier():
        raise ValueError(f"{step}: column is {column!r}, wanted a name such as 'quality'")
    if not 0 <= min_bin < NUM_BINS:
        raise ValueError(f"{step}: min_bin is {min_bin}, wanted 0 to {NUM_BINS - 1}")
    borders = [border for _, border in levels]
    if not borders or borders[-1] != 0 or borders != sorted(set(borders), reverse=True):
        raise ValueError(
            f"{step}: the levels' lowest bins are {borders}, wanted descending and the last one 0"
        )


def bin_fields(column: str) -> list[pa.Field]:
    """Returns the columns of a bin and its level."""
    return [pa.field(f"{column}_bin", pa.int8()), pa.field(f"{column}_level", pa.string())]


def bin_rule(column: str) -> Rule:
    """Returns the rule that bounds the bin."""
    return Rule(f"low_{column}", f"{column}_bin", "<", "min_bin", max_share=1.0)


def with_levels(
    batch: pa.RecordBatch, column: str, bins: pa.Array, levels: tuple[tuple[str, int], ...]
) -> pa.RecordBatch:
    """Returns the batch with the bins and the name of each bin's level."""
    names = [next(name for name, border in levels if k >= border) for k in range(NUM_BINS)]
    level = pa.array(names, pa.string()).take(bins)
    return batch.append_column(f"{column}_bin", bins).append_column(f"{column}_level", level)
