"""Steps: frozen dataclasses that map a record batch to a record batch, one row in, one row out.

A step's fields are its parameters, its repr, its documentation and its identity at once. It looks
at the rows of one batch only, so step(a + b) = step(a) + step(b) (the split law), and an engine may
cut the data into batches as it likes.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Rule:
    """A document breaks the rule where `column comparison threshold` holds.

    The threshold is the value of the filter's field named by `threshold`, so it can be asked again
    later with another value. "not in" compares with a tuple. A null signal breaks no rule.
    """

    name: str
    column: str
    comparison: str
    threshold: str
    max_share: float = 0.95
    """Above this share of the documents of a source that reach it (1,000 or more) the run stops."""

    def __post_init__(self) -> None:
        if self.comparison not in (*COMPARISONS, "not in"):
            raise ValueError(
                f"rule {self.name}: comparison is {self.comparison!r}; "
                f"wanted one of: {', '.join([*COMPARISONS, 'not in'])}"
            )


@dataclass(frozen=True)
class Step:
    """The base of all steps. Parameters are annotated fields, constants plain class attributes."""

    version: ClassVar[int] = 1
    """Raised whenever the same parameters give other results; part of the fingerprint."""
    reads: ClassVar[tuple[str, ...]] = ("text",)
    """Columns that must exist before the step."""
    adds: ClassVar[pa.Schema] = pa.schema([])
    """Columns that the step adds, with their types."""
    consumes: ClassVar[tuple[str, ...]] = ()
    """Columns that no longer exist after the step."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Parameters that name files: the sha256 of the file is identity, its path is not.

    One is a path, or a tuple of objects that name files: their `identity()` goes with the
    parameters, their `sha256()` by file with the files.
    """
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version is part of the fingerprint."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the columns of `adds` appended and those of `consumes` removed."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")

    @property
    def name(self) -> str:
        """The name under which the step appears in messages, manifests and ledgers."""
        return type(self).__name__

    def facts(self) -> dict[str, Any]:
        """Returns what a reader of the manifest has to know of the step's files, ready for JSON."""
        return {}

    def parameters(self) -> dict[str, Any]:
        """Returns the parameters that are identity (paths are not), in order of declaration."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.paths}


@dataclass(frozen=True)
class Filter(Step):
    """A step that computes signals and declares rules on them. It never removes a row."""

    rules: ClassVar[tuple[Rule, ...]] = ()
    """In the order in which they are asked; every one is evaluated."""


@dataclass(frozen=True)
class Editor(Step):
    """A step that replaces `text`; the columns it adds say what it changed."""


@dataclass(frozen=True)
class Cut(Step):
    """Removes the documents that broke a rule before this point; later steps do not see them."""

    reads = ()

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch as it is: the engine does the cutting."""
        return batch


def broken(rule: Rule, step: Step, batch: pa.RecordBatch) -> np.ndarray:
    """Returns a boolean array, true where the row breaks the rule. A null signal is false."""
    column = batch.column(rule.column)
    threshold = getattr(step, rule.threshold)
    if rule.comparison == "not in":
        mask = pc.invert(pc.is_in(column, pa.array(threshold, column.type)))
        return pc.and_(mask, pc.is_valid(column)).to_numpy(zero_copy_only=False)
    values = column.to_numpy(zero_copy_only=False)
    if column.null_count:
        valid = pc.is_valid(column).to_numpy(zero_copy_only=False)
        result = np.zeros(len(values), bool)
        result[valid] = COMPARISONS[rule.comparison](values[valid], threshold)
        return result
    return np.asarray(COMPARISONS[rule.comparison](values, threshold), bool)
