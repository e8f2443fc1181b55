"""Bits per byte on held-out documents: comparable across vocabularies, which losses are not.

The score of a part is the summed negative log-likelihood of its documents' tokens, end-of-document
tokens included, over ln 2 times the UTF-8 bytes of the documents. A document is laid out as in
training: an end-of-document token (a document of its own, as if another had just ended) predicts
the first token, then attention and SSM state start afresh. A document longer than the sequence is
cut into pieces that follow each other without gap or overlap; a later piece starts with nothing but
its last token before the cut, as in training. Carrying the state across would flatter long
documents by what the model was never trained to do.

Pieces of one part are packed into rows, so that the padding, which is never scored, stays small. Of
conversations only what is trained on is scored, tokens and bytes.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixtures.holdout import HeldOut, held_out
from mixtures.plan import Plan
from training_hook.model import HybridModel
from training_hook.ranks import ALONE, Ranks


@dataclass(frozen=True)
class PartScore:
    """What a part's documents cost to encode."""

    part: str
    documents: int
    tokens: int
    bytes: int
    nats: float

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for each byte of text."""
        return self.nats / (math.log(2) * self.bytes)

    @property
    def loss(self) -> float:
        """Nats for each scored token: comparable only within a vocabulary."""
        return self.nats / self.tokens

    def row(self) -> dict[str, Any]:
        """Returns the score as a row of the metrics' EVALUATIONS, without the step."""
        return {**vars(self), "bits_per_byte": self.bits_per_byte}


@dataclass(frozen=True)
class Rows:
    """Packed pieces, each array (rows, sequence_length)."""

    tokens: np.ndarray  # int32
    targets: np.ndarray  # int32
    mask: np.ndarray  # bool, true where the target is scored
    document_ids: np.ndarray  # int32, differ from piece to piece


def total_score(scores: Sequence[PartScore]) -> PartScore:
    """Returns the sum over parts, under the name "total"."""
    return PartScore(
        part="total",
        documents=sum(score.documents for score in scores),
        tokens=sum(score.tokens for score in scores),
        bytes=sum(score.bytes for score in scores),
        nats=math.fsum(score.nats for score in scores),
    )


def held_out_documents(mixture: Path, max_tokens: int) -> list[HeldOut]:
    """Returns held-out documents of a mixture, of each part until it has `max_tokens`.

    One that is longer than that by itself is left out, so a part has less than twice as many.

    Raises:
        ValueError: a part has no held-out document, or only longer ones.
    """
    found = [d for d in held_out(mixture, max_tokens) if len(d.tokens) <= max_tokens]
    parts = [part["name"] for part in Plan(mixture).parts]
    if missing := [name for name in parts if name not in {d.part for d in found}]:
        raise ValueError(
            f"evaluate: {mixture} holds out no document of at most {max_tokens:,} tokens of "
            f"{', '.join(missing)}. Mix with a larger holdout_share, or raise evaluation_tokens"
        )
    return found


def pack(
    documents: Iterable[np.ndarray],
    sequence_length: int,
    end_of_document: int,
    masks: Iterable[np.ndarray | None] = repeat(None),
) -> Rows:
    """Cuts documents into pieces of at most `sequence_length` and packs them best fit, in order.

    Args:
        documents: their tokens.
        sequence_length: places of a row.
        end_of_document: id of the token that ends every document.
        masks: for each document which of its tokens are scored; None if all are.
    """
    pieces = [
        piece
        for tokens, mask in zip(documents, masks, strict=False)
        for piece in _pieces(tokens, mask, sequence_length, end_of_document)
    ]
    rows: list[list[_Piece]] = []
    free: list[tuple[int, int]] = []  # (free places, row), ascending
    for piece in pieces:
        length = len(piece.scored)
        i = bisect_left(free, (length, -1))
        if i == len(free):
            rows.append([piece])
            insort(free, (sequence_length - length, len(rows) - 1))
        else:
            places, row = free.pop(i)
            rows[row].append(piece)
            insort(free, (places - length, row))
    shape = (len(rows), sequence_length)
    tokens = np.full(shape, end_of_document, np.int32)
    targets = np.full(shape, end_of_document, np.int32)
    mask = np.zeros(shape, bool)
    ids = np.zeros(shape, np.int32)
    for row, members in enumerate(rows):
        at, document = 0, 0
        for piece in members:
            end = at + len(piece.scored)
            tokens[row, at:end], targets[row, at:end] = piece.tokens[:-1], piece.tokens[1:]
            mask[row, at:end] = piece.scored
            ids[row, at:end] = document + 1
            ids[row, at] = document + (0 if piece.starts else 1)
            at, document = end, document + 2
        ids[row, at:] = document
    return Rows(tokens, targets, mask, ids)


class _Piece(NamedTuple):
    tokens: np.ndarray  # length + 1: inputs and targets overlap
    scored: np.ndarray  # bool, length: of the targets
    starts: bool  # whether it is the first of its document


def _pieces(
    tokens: np.ndarray, mask: np.ndarray | None, sequence_length: int, end_of_document: int
) -> Iterator[_Piece]:
    whole = np.concatenate([np.array([end_of_document], np.int32), tokens.astype(np.int32)])
    scored = np.ones(len(tokens), bool) if mask is None else mask
    for start in range(0, len(tokens), sequence_length):
        stop = start + sequence_length
        yield _Piece(whole[start : stop + 1], scored[start:stop], start == 0)


def evaluate(
    model: HybridModel,
    documents: Sequence[HeldOut],
    sequence_length: int,
    batch_size: int,
    end_of_document: int,
    advance: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> list[PartScore]:
    """Scores held-out documents by part, in the order in which the parts first appear.

    Ranks take turns with the batches of a part and add up what they found.

    Args:
        model: on its device; its parameters are not changed.
        documents: of any lengths; each is scored whole.
        sequence_length: longest piece that goes through the model at once.
        batch_size: rows that go through the model at once.
        end_of_document: id of the token that ends every document.
        advance: called with the number of rows done, for progress; may raise to stop, on all
            ranks at once.
        ranks: who takes part.

    Raises:
        ValueError: there are no documents, or one is empty.
        FloatingPointError: the likelihood of a part is not finite.
    """
    if not documents:
        raise ValueError("evaluate: there are no held-out documents; hold some out when mixing")
    for document in documents:
        if len(document.tokens) == 0 or document.size_bytes == 0:
            raise ValueError(f"evaluate: a held-out document of {document.part!r} is empty")
    device = next(model.parameters()).device
    scores = []
    for part in dict.fromkeys(document.part for document in documents):
        members = [document for document in documents if document.part == part]
        tokens, masks = [d.tokens for d in members], [d.mask for d in members]
        rows = pack(tokens, sequence_length, end_of_document, masks)
        nats, count = 0.0, 0
        turn = batch_size * ranks.world_size
        for start in range(0, len(rows.tokens), turn):
            # a rank whose turn is past the last row scores padding: all gather weights together
            mine = start + batch_size * ranks.rank
            loss, scored = _score(model, rows, mine, batch_size, device)
            nats, count = nats + loss, count + scored
            advance(min(turn, len(rows.tokens) - start))
        nats, count = ranks.gather(np.array([nats, count])).sum(0).tolist()
        if not math.isfinite(nats):
            raise FloatingPointError(f"evaluate: the likelihood of part {part!r} is {nats}")
        size = sum(document.size_bytes for document in members)
        scores.append(PartScore(part, len(members), int(count), size, nats))
    return scores


@torch.no_grad()
def _score(
    model: HybridModel, rows: Rows, start: int, batch_size: int, device: torch.device
) -> tuple[float, int]:
    """Returns summed nats and scored tokens of one batch; short batches are padded with a row."""

    def batch(array: np.ndarray) -> Tensor:
        chosen = array[start : start + batch_size]
        padding = np.zeros((batch_size - len(chosen), array.shape[1]), array.dtype)
        return torch.from_numpy(np.concatenate([chosen, padding])).to(device)

    mask = batch(rows.mask)
    loss, _, _ = model.loss(
        batch(rows.tokens).long(), batch(rows.targets).long(), mask, batch(rows.document_ids)
    )
    return float(loss), int(mask.sum())


def num_rows(documents: Sequence[HeldOut], sequence_length: int) -> int:
    """Returns a lower bound of the rows that evaluating takes: what a progress bar counts to."""
    return math.ceil(sum(len(document.tokens) for document in documents) / sequence_length)
