"""Substring deduplication: text that occurs before is cut, from `min_bytes` equal bytes on.

A window is `min_bytes` bytes of a text. It is a duplicate if the same bytes occur earlier in the
order of the keep policy, the document's id and the place in the text, without overlapping it; what
the duplicate windows of a document cover is cut. So the first occurrence of anything stays, at any
memory the same. Lee et al. build one suffix array of all the text, five to nine times its size, and
cut every occurrence but leave it open which one stays. Here winnowing marks the windows, marks that
occur once (most of the text) are left out, and suffix arrays are built of the rest in parts that
fit into memory.

Source: Lee et al. 2022, Deduplicating training data makes language models better,
arXiv:2107.06499, section 4.1.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.dedup.keep import Order, ranks
from pipelines.dedup.span_bounds import BOUNDS
from pipelines.dedup.winnow_kernels import winnow
from pipelines.span_step import Marks, WindowStep, span_columns
from pipelines.text_buffers import string_buffers

MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class SubstringDedup(WindowStep):
    """Cuts what occurs before in the same bytes, `min_bytes` of them or more.

    Adds duplicate_substring_spans (start and end in bytes of the text as it was before, and the id
    of the document that holds the first occurrence; a stretch that is first in several documents
    one after the other gives several spans that touch), n_duplicate_substring_spans (int32) and
    duplicate_substring_bytes (int64).

    Raises:
        ValueError: a parameter is out of its range.
    """

    min_bytes: int = 100
    """Shorter repetitions stay."""
    bounds: str = "character"
    """Cuts are trimmed inwards to "character", whole "line" (with its line feed) or "sentence"."""
    keep: tuple[Order, ...] = ()

    spans = "duplicate_substring"
    adds = span_columns("duplicate_substring")
    libraries = ("pydivsufsort",)

    def __post_init__(self) -> None:
        if not 2 <= self.min_bytes <= MOST_BYTES:
            raise ValueError(
                f"SubstringDedup: min_bytes is {self.min_bytes}; wanted 2 to {MOST_BYTES}"
            )
        if self.bounds not in BOUNDS:
            raise ValueError(
                f"SubstringDedup: bounds is {self.bounds!r}; wanted one of: {', '.join(BOUNDS)}"
            )

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The text and the columns of the keep policy."""
        return tuple(dict.fromkeys(("text", *(order.column for order in self.keep))))

    @property
    def window(self) -> int:
        """Bytes of a window: min_bytes."""
        return self.min_bytes

    @property
    def trimmed_to(self) -> str:
        """As `bounds` says."""
        return self.bounds

    def marks(self, batch: pa.RecordBatch) -> Marks:
        """Returns the marks of all windows.

        K-grams have half a window's bytes. Of shorter ones more occur again that are part of no
        equal windows, longer ones mark fewer windows each; on text of packages half is best.
        """
        gram = (self.min_bytes + 1) // 2
        hashes, document, place = winnow(
            *string_buffers(batch.column("text")), self.min_bytes, gram
        )
        return Marks(hashes[:, None], document, place)

    def rank(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns the keep policy's ranks."""
        return ranks(self.keep, batch)
