"""Deduplication of lines and paragraphs: all copies of a piece of text but the first are cut.

Pieces are compared by a 128-bit hash with white space folded, as `ExactDedup` compares texts. What
stands in very many documents is mostly menus, notices and licences; what stands in two may be a
quotation: `min_documents` says where to begin.

Source: Wenzek et al. 2020, CCNet, arXiv:1911.00359, section 3.1 (paragraphs).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.dedup.keep import Order, ranks
from pipelines.dedup.piece_kernels import piece_bounds
from pipelines.document import id_bytes
from pipelines.hashing import normalised_hashes
from pipelines.span_step import SPANS, Marks, PieceStep, span_columns
from pipelines.text_buffers import string_buffers

UNITS = ("line", "paragraph")


@dataclass(frozen=True)
class PieceDedup(PieceStep):
    """Cuts lines or paragraphs that occur before, in order of keep policy, id and place in text.

    A line goes with its line feed, a paragraph with the blank lines (spaces, tabs, carriage
    returns) that end it. Adds, for lines, duplicate_line_spans (start and end in bytes of the text
    as it was before, and the id of the document that holds the first such line),
    n_duplicate_line_spans (int32) and duplicate_line_bytes (int64); for paragraphs
    duplicate_paragraph_spans and so on.

    Raises:
        ValueError: a parameter is out of its range.
    """

    unit: str = "line"
    """"line" or "paragraph"."""
    min_bytes: int = 30
    """Shorter ones stay: bytes of the text with white-space runs as one space, ends trimmed."""
    min_documents: int = 1
    """Those that stand in fewer documents stay; 1 cuts what one document repeats as well."""
    keep: tuple[Order, ...] = ()

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(
                f"PieceDedup: unit is {self.unit!r}; wanted one of: {', '.join(UNITS)}"
            )
        for name in ("min_bytes", "min_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"PieceDedup: {name} is {getattr(self, name)}; wanted 1 or more")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The text and the columns of the keep policy."""
        return tuple(dict.fromkeys(("text", *(order.column for order in self.keep))))

    @property
    def spans(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The name of its columns."""
        return f"duplicate_{self.unit}"

    @property
    def adds(self) -> pa.Schema:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The text and what the ledger says of it."""
        return span_columns(self.spans)

    def marks(self, batch: pa.RecordBatch) -> Marks:
        """Returns the pieces of min_bytes and more."""
        text = batch.column("text")
        offsets, data, valid = string_buffers(text)
        bounds, document = piece_bounds(offsets, data, self.unit == "paragraph")
        pieces = pa.StringArray.from_buffers(
            len(document), pa.py_buffer(bounds), pa.py_buffer(data)
        )  # of another cut of the same bytes
        hashes, sizes = normalised_hashes(pieces)
        mine = np.flatnonzero((sizes >= self.min_bytes) & valid[document])
        document = document[mine]
        place = np.stack([bounds[mine], bounds[mine + 1]], axis=1) - offsets[document, None]
        return Marks(hashes[mine], document, place)

    def rank(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns the keep policy's ranks."""
        return ranks(self.keep, batch)

    def decide(
        self,
        hashes: np.ndarray,
        order: np.ndarray,
        place: np.ndarray,
        unit: np.ndarray,
        row: np.ndarray,
    ) -> pa.Table:
        """Returns all but the first piece of each hash that stands in min_documents."""
        line = np.lexsort((place[:, 0], *reversed(order.T), hashes[:, 1], hashes[:, 0]))
        hashes, order = hashes[line], order[line]
        head, other = np.ones((2, len(line)), bool)
        head[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
        other[1:] = head[1:] | (order[1:] != order[:-1]).any(axis=1)
        first = np.flatnonzero(head)
        sizes = np.diff(np.append(first, len(line)))
        documents = np.add.reduceat(other, first, dtype=np.int64) if len(first) else first
        cut = np.flatnonzero(~head & np.repeat(documents >= self.min_documents, sizes))
        ids = order[np.repeat(first, sizes)[cut], -2:]
        cut = line[cut]
        columns = (unit[cut], row[cut], place[cut, 0], place[cut, 1], id_bytes(ids))
        return pa.table(list(columns), schema=SPANS)
