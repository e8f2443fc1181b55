"""The stream: numpy batches of a mixture from any sample on, the same on every rank layout.

The sample at an index is a pure function of the mixture (which holds the seed) and the index, so a
state is a number: resuming, skipping and changing the number of ranks cost nothing. A batch is
copied from mapped files into fresh arrays, over 1,000 million tokens a second and core; nothing is
read ahead here, the page cache and the trainer's thread do that.

Documents that were masked after the mixture was made (`mixtures.masked`) are blanked: their places
hold end-of-document tokens that are no targets. The order and every other document stay as they
were, so a run goes on where it stopped; the state says from which sample on what was blanked.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixtures.gather import blank, gather, join_masks
from mixtures.packing import START_BITS
from mixtures.plan import Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """A rank's rows of a global batch."""

    tokens: np.ndarray
    """(rows, sequence_length + 1) in the stored type; padding is 0."""
    loss_mask: np.ndarray | None
    """bool, (rows, sequence_length), true where a target counts; None if all do. Left out are
    padding, the first token of a document's continuation after another document's end, what
    conversations are not trained on, and blanked documents."""
    boundaries: np.ndarray
    """int32, (rows, max_documents): first position of each document, then sequence_length + 1."""
    sample_indices: np.ndarray
    """int64, (rows): the sample's index in the mixture, as `mixtures.lineage` takes it."""


class Stream:
    """An iterator of batches with a state.

    Args:
        mixture: folder that `mix` wrote.
        batch_size: samples of a global batch, over all ranks.
        rank: which slice of each global batch this is.
        world_size: ranks.
        start: samples of the mixture that have been consumed.
        token_datasets: folders by part, for token datasets that were moved.

    Raises:
        ValueError: the batch does not divide by the ranks, or the mixture or its token datasets
            are not what they were.
    """

    def __init__(
        self,
        mixture: str | Path,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        token_datasets: Mapping[str, str | Path] | None = None,
    ) -> None:
        _check_batch_size(batch_size, world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"stream: rank is {rank}; wanted 0 to {world_size - 1}")
        self.plan = Plan(mixture, token_datasets)
        if not 0 <= start <= self.plan.num_samples:
            raise ValueError(f"stream: start is {start}; wanted 0 to {self.plan.num_samples:,}")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._consumed = start
        self._history: list[tuple[int, str]] = [(0, self.plan.fingerprint)]
        self._gone, self._gone_lengths = self.plan.masked_ranges()
        self._blanked: list[tuple[int, dict[str, str]]] = []
        self._note_blanked()
        self._warned = False
        self._shards = self.plan.tokens()  # keeps the mappings alive behind the addresses
        self._addresses = np.array([shard.ctypes.data for shard in self._shards], np.uint64)
        self._masks = self.plan.masks()
        self._mask_addresses = np.array(
            [0 if mask is None else mask.ctypes.data for mask in self._masks], np.uint64
        )

    @property
    def num_samples(self) -> int:
        """Samples of the mixture."""
        return self.plan.num_samples

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        """Returns this rank's rows of the next global batch; a last batch that is short is not."""
        batch = self.take(self.batch_size)
        if batch is None:
            raise StopIteration
        return batch

    def take(self, batch_size: int) -> Batch | None:
        """Returns this rank's rows of the next global batch, which may have a size of its own.

        None if the mixture has fewer samples left.

        Raises:
            ValueError: the batch does not divide by the ranks.
        """
        _check_batch_size(batch_size, self.world_size)
        first = self._consumed - self._history[-1][0]
        if first + batch_size > self.plan.num_samples:
            return None
        if self.plan.blanked and not self._warned:
            self._warn()
        rows = batch_size // self.world_size
        begin = first + self.rank * rows
        batch = self._read(np.arange(begin, begin + rows))
        self._consumed += batch_size
        return batch

    def batch(self, indices: np.ndarray) -> Batch:
        """Returns any samples of the mixture by index (int64).

        Raises:
            ValueError: an index is below 0 or past the mixture's end.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.plan.num_samples:
            raise ValueError(
                f"stream: samples {indices.min()} to {indices.max()} of {self.plan.num_samples:,}"
            )
        return self._read(indices)

    def _read(self, indices: np.ndarray) -> Batch:
        plan, rows, length = self.plan, len(indices), self.plan.sequence_length
        tokens = np.empty((rows, length + 1), plan.dtype)
        mask = np.empty((rows, length), np.bool_)
        boundaries = np.empty((rows, plan.max_documents), np.int32)
        parts, _, packs = plan.schedule.locate(indices)
        numbers = plan.first_packs[parts] + packs
        places = (
            numbers,
            plan.packs,
            plan.locations,
            plan.lengths,
            np.uint64(START_BITS),
        )
        masked = gather(*places, self._addresses, tokens, mask, boundaries)
        if self._mask_addresses.any():
            join_masks(*places, self._mask_addresses, masked, mask)
            masked = True
        if len(self._gone):
            gone = self._gone, self._gone_lengths, self.plan.manifest["end_of_document"]
            masked = blank(numbers, *places[1:4], *gone, masked, tokens, mask)
        return Batch(tokens, mask if masked else None, boundaries, indices)

    def sample(self, index: int) -> Batch:
        """Returns one sample as a batch of one row."""
        return self.batch(np.array([index]))

    def state_dict(self) -> dict[str, Any]:
        """Returns what continues the stream: plain numbers and strings.

        `samples` counts those of the whole run; `history` lists at which of them each mixture
        began. If documents are blanked, `blanked` lists from which of them on which parts were
        read without what was masked in them by then.
        """
        state = {"samples": self._consumed, "history": [list(entry) for entry in self._history]}
        if self._blanked:
            state["blanked"] = [[samples, dict(parts)] for samples, parts in self._blanked]
        return state

    def load_state_dict(self, state: Mapping[str, Any], continuation: bool = False) -> None:
        """Continues where a state was taken, with any batch size and number of ranks.

        Args:
            state: of `state_dict`.
            continuation: this mixture follows the state's mixture, from its own first sample on.

        Raises:
            ValueError: the state is of another mixture and this is no continuation, or is past the
                mixture's end.
        """
        samples = int(state["samples"])
        history = [(int(index), str(mark)) for index, mark in state["history"]]
        blanked = [(int(index), dict(parts)) for index, parts in state.get("blanked", ())]
        if continuation:
            history.append((samples, self.plan.fingerprint))
            blanked = [entry for entry in blanked if entry[0] < samples]  # the others read nothing
        elif history[-1][1] != self.plan.fingerprint:
            raise ValueError(
                f"stream: the state is of mixture {history[-1][1][:12]}, {self.plan.path} is "
                f"{self.plan.fingerprint[:12]}. Open the other mixture, or load with "
                f"continuation=True to go on with this one from its first sample."
            )
        if not 0 <= samples - history[-1][0] <= self.plan.num_samples:
            raise ValueError(
                f"stream: the state is at sample {samples - history[-1][0]:,} of "
                f"{self.plan.num_samples:,}"
            )
        began = history[-1][0]
        if any(index >= began and not self.plan.knows_blanked(parts) for index, parts in blanked):
            raise ValueError(
                f"stream: the state was read without documents that were masked in parts "
                f"{', '.join(sorted(blanked[-1][1]))}, which the token datasets do not say any "
                f"more. Mask them again, or open the token datasets that have the masks."
            )
        self._consumed, self._history, self._blanked = samples, history, blanked
        self._note_blanked()

    def _note_blanked(self) -> None:
        """Notes from which sample on the documents are blanked that are masked now."""
        parts = self.plan.blanked
        if parts != (self._blanked[-1][1] if self._blanked else {}):
            self._blanked.append((self._consumed, parts))

    def _warn(self) -> None:
        logger.warning(
            "%s: documents of %s were masked after it was mixed; their places are blank since "
            "sample %d. Mix again to fill them.",
            self.plan.path,
            ", ".join(self.plan.blanked),
            self._blanked[-1][0],
        )
        self._warned = True


def _check_batch_size(batch_size: int, world_size: int) -> None:
    if batch_size < 1 or world_size < 1 or batch_size % world_size:
        raise ValueError(
            f"stream: batch_size {batch_size} does not divide by world_size {world_size}"
        )
