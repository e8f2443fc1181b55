"""Span steps: global steps that cut repeated spans out of texts. They drop no document.

A span step needs the whole dataset but sees only marks: hashes of short stretches of text with
their places. Which spans are cut is a table of verdicts, the engine cuts them out, and the ledger
says of every document which spans these were and which document holds the first of each. A document
that is left without text is dropped by `no_text`. There are two kinds. A `PieceStep` parts a text
into pieces (lines, paragraphs) and marks each: those of equal hash are copies. A `WindowStep` marks
places so that two equal windows of a text are marked alike: the marks propose, the bytes decide.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.step import Step

SPANS = pa.schema(
    [
        ("unit", pa.int32()),
        ("row", pa.int64()),
        ("start", pa.int64()),  # bytes of the text as it was before the step
        ("end", pa.int64()),
        ("matched", pa.binary(16)),  # the id of the document that holds the first of it
    ]
)
SPAN_LIST = pa.list_(
    pa.struct([("start", pa.int64()), ("end", pa.int64()), ("matched_id", pa.string())])
)


class Marks(NamedTuple):
    """The marks of a batch of documents."""

    hash: np.ndarray
    """(n, h) uint64."""
    document: np.ndarray
    """(n,) int32, the place of the document in the batch, ascending."""
    place: np.ndarray
    """(n, p) int32, where the mark is in the text: bytes."""


def span_columns(name: str) -> pa.Schema:
    """Returns what a span step adds: the text, NAME_spans, n_NAME_spans and NAME_bytes."""
    columns = [("text", pa.string()), (f"{name}_spans", SPAN_LIST)]
    return pa.schema([*columns, (f"n_{name}_spans", pa.int32()), (f"{name}_bytes", pa.int64())])


@dataclass(frozen=True)
class PieceStep(Step):
    """A step that cuts pieces of text of which there are copies before it.

    The first in the order of the keep policy, the document's id and the place in the text stays.
    """

    spans: ClassVar[str] = ""
    """The NAME of its columns."""
    max_share: ClassVar[float] = 0.95
    """Above this share of the text of a source (of 1,000 documents or more) the run stops."""
    engines: ClassVar[tuple[str, ...]] = ("local", "spark")
    """Where it runs."""

    def marks(self, batch: pa.RecordBatch) -> Marks:
        """Returns the pieces that may be cut: their 128-bit hashes, start and end."""
        raise NotImplementedError(f"{self.name} does not define marks")

    def rank(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns (n, r) uint64, the keep policy: smaller comes first, column by column."""
        raise NotImplementedError(f"{self.name} does not define rank")

    def decide(
        self,
        hashes: np.ndarray,
        order: np.ndarray,
        place: np.ndarray,
        unit: np.ndarray,
        row: np.ndarray,
    ) -> pa.Table:
        """Returns the SPANS to cut of n pieces; all pieces of a hash are there.

        Args:
            hashes: (n, 2) uint64.
            order: (n, r + 2) uint64, the rank and the id of each piece's document.
            place: (n, 2) int32, start and end.
            unit: (n,) int32.
            row: (n,) int64.
        """
        raise NotImplementedError(f"{self.name} does not define decide")


@dataclass(frozen=True)
class WindowStep(Step):
    """A step that cuts what is covered by windows of equal bytes that occur before.

    A window is `window` bytes of a text. It is cut if the same bytes occur earlier in the order of
    the keep policy, the document's id and the place in the text, without overlapping it.
    """

    spans: ClassVar[str] = ""
    """The NAME of its columns."""
    max_share: ClassVar[float] = 0.95
    """Above this share of the text of a source (of 1,000 documents or more) the run stops."""
    engines: ClassVar[tuple[str, ...]] = ("local",)
    """Where it runs."""

    @property
    def window(self) -> int:
        """Bytes of a window."""
        raise NotImplementedError(f"{self.name} does not define window")

    @property
    def trimmed_to(self) -> str:
        """To what the covered spans are trimmed inwards: "character", "line" or "sentence"."""
        raise NotImplementedError(f"{self.name} does not define trimmed_to")

    def marks(self, batch: pa.RecordBatch) -> Marks:
        """Returns marks of windows: a hash, where it is, the first and the last window it is for.

        Each window has one mark, and equal windows have equal hashes at equal distances.
        """
        raise NotImplementedError(f"{self.name} does not define marks")

    def rank(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns (n, r) uint64, the keep policy: smaller comes first, column by column."""
        raise NotImplementedError(f"{self.name} does not define rank")


SpanStep = PieceStep | WindowStep
"""The kinds that cut: they have `spans`, `marks` and `rank`."""
