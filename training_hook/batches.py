"""From a stream's numpy batches to tensors that are ready when the device is.

A thread reads the stream ahead, so reading, counting and pinning cost the training loop nothing.
Each batch carries the stream's state after it: a checkpoint must know what was trained on, and the
stream itself is ahead by then. Document boundaries travel as a few integers a row and become ids on
the device, with one shape for all batches, so that nothing is compiled again.
"""

import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixtures.stream import Batch, Stream
from training_hook.ranks import Ranks


@dataclass(frozen=True)
class HostBatch:
    """A rank's rows of a global batch in host memory, pinned where the device is a GPU."""

    tokens: Tensor  # int32, (rows, sequence_length + 1)
    loss_mask: Tensor | None  # bool, (rows, sequence_length)
    boundaries: Tensor  # int64, (rows, max_documents), padded with sequence_length + 1
    row_targets: np.ndarray  # int64: target tokens of each row, after `of_all` of each of the batch
    sample_indices: np.ndarray  # int64, likewise
    stream_state: dict[str, Any]  # what continues the stream after this batch

    @property
    def num_targets(self) -> int:
        """Target tokens of the batch."""
        return int(self.row_targets.sum())

    def of_all(self, ranks: Ranks) -> "HostBatch":
        """Returns the same rows with the targets and samples of the whole batch, in its order."""
        mine = np.stack([self.row_targets, self.sample_indices])
        row_targets, sample_indices = ranks.gather(mine).swapaxes(0, 1).reshape(2, -1)
        return replace(self, row_targets=row_targets, sample_indices=sample_indices)


def host_batch(batch: Batch, stream_state: dict[str, Any], pin: bool) -> HostBatch:
    """Returns a stream's batch as tensors, with the number of its target tokens."""

    def tensor(array: np.ndarray) -> Tensor:
        made = torch.from_numpy(np.ascontiguousarray(array))
        return made.pin_memory() if pin else made

    mask = batch.loss_mask
    rows, length = batch.tokens.shape[0], batch.tokens.shape[1] - 1
    return HostBatch(
        tokens=tensor(batch.tokens.astype(np.int32)),
        loss_mask=None if mask is None else tensor(mask),
        boundaries=tensor(batch.boundaries.astype(np.int64)),
        row_targets=np.full(rows, length) if mask is None else np.count_nonzero(mask, axis=1),
        sample_indices=batch.sample_indices,
        stream_state=stream_state,
    )


def document_ids(boundaries: Tensor, sequence_length: int) -> Tensor:
    """Returns (batch, sequence_length) int32 ids that rise by one at each start of a document.

    Args:
        boundaries: start positions, (batch, any number); sequence_length and above have no effect.
        sequence_length: number of positions of the result, whatever the boundaries hold.
    """
    starts = boundaries.new_zeros((boundaries.shape[0], sequence_length + 2), dtype=torch.int32)
    starts.scatter_(1, boundaries, 1)
    return starts[:, :sequence_length].cumsum(1, dtype=torch.int32)


class Prefetch:
    """Reads a stream ahead in a thread. `close` ends the thread.

    Args:
        stream: what to read.
        pin: whether tensors go to pinned memory.
        sizes: of the batches to read, one after the other.
        depth: batches ahead.
    """

    def __init__(self, stream: Stream, pin: bool, sizes: Iterable[int], depth: int = 2) -> None:
        self._queue: queue.Queue[HostBatch | BaseException] = queue.Queue(depth)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(stream, pin, sizes), daemon=True)
        self._thread.start()

    def next(self) -> HostBatch:
        """Returns the next batch; raises what the stream raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join()

    def _read(self, stream: Stream, pin: bool, sizes: Iterable[int]) -> None:
        try:
            for size in sizes:
                batch = stream.take(size)
                if batch is None:
                    raise ValueError("pretrain: the stream ended before the run; mix more tokens")
                if not self._put(host_batch(batch, stream.state_dict(), pin)):
                    return
        except BaseException as error:  # raised again by next(), in the thread that trains
            self._put(error)

    def _put(self, item: HostBatch | BaseException) -> bool:
        while not self._closing.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
