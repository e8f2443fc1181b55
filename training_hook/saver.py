"""Checkpoints that are written while training goes on.

What has to be saved is copied to host memory, on a GPU by a stream of its own into pinned buffers
that stay for the next one; then a thread writes it. Forward and backward passes go on meanwhile,
only the next update waits, on the device, until the copy is made. There is one checkpoint in flight
at most. Ranks write theirs in threads, too, which meet in a process group of their own.
"""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training_hook.checkpoint import checkpoints, prune_checkpoints, save_checkpoint
from training_hook.ranks import Ranks
from training_hook.rows import Rows, whole
from training_hook.run import PretrainRun

Tensors = Mapping[str, Mapping[str, Tensor | Rows]]
"""Folder name to {tensor name: what this rank writes}."""


class Saver:
    """Writes the checkpoints of a run, one at a time.

    Args:
        folder: of the run's checkpoints.
        run: says which of them stay.
        ranks: of the run.
        device: where the tensors are.
    """

    def __init__(self, folder: Path, run: PretrainRun, ranks: Ranks, device: torch.device) -> None:
        self._folder, self._run, self._ranks = folder, run, ranks.apart()
        self._device, self._on_gpu = device, device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._copied: torch.cuda.Event | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._sources: Tensors = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Copies a checkpoint and begins to write it, after the one before it is written.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        copies = self._copy(tensors)
        arguments = (step, copies, dict(state), self._copied)
        self._thread = threading.Thread(
            target=self._write, args=arguments, name=f"checkpoint-{step}", daemon=True
        )
        self._thread.start()

    def before_update(self, *_: Any) -> None:
        """Has the device make its copy before it changes what is copied; the host does not wait."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
            self._copied = None

    @property
    def failed(self) -> bool:
        """Whether it is known by now that a checkpoint could not be written; `wait` says why."""
        return self._failure is not None

    def wait(self) -> None:
        """Waits until the checkpoint that was begun is written.

        Raises:
            OSError: the disk is full; the checkpoint before is whole.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def settle(self) -> None:
        """Waits for the checkpoint that was begun, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join()

    def last(self) -> Path | None:
        """Returns the newest checkpoint that is whole, after waiting for one in flight."""
        self.wait()
        found = checkpoints(self._folder)
        return found[max(found)] if found else None

    def _copy(self, tensors: Tensors) -> dict[str, dict[str, Rows]]:
        """Copies to the host, or, on a GPU, begins to."""
        if self._stream is None:
            return self._copy_each(tensors)
        # what is no weight or moment is small, and changes before the update does
        tensors = {
            folder: {name: t if isinstance(t, Rows) else t.clone() for name, t in named.items()}
            for folder, named in tensors.items()
        }
        self._sources = tensors  # not freed while the copy reads them
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            copies = self._copy_each(tensors)
            self._copied = torch.cuda.Event()
            self._copied.record()
        return copies

    def _copy_each(self, tensors: Tensors) -> dict[str, dict[str, Rows]]:
        copies: dict[str, dict[str, Rows]] = {}
        for folder, named in tensors.items():
            copies[folder] = {}
            for name, tensor in named.items():
                rows = tensor if isinstance(tensor, Rows) else whole(tensor)
                buffer = self._buffer(folder, name, rows.local)
                copies[folder][name] = replace(rows, local=buffer)
                buffer.copy_(rows.local, non_blocking=True)
        return copies

    def _buffer(self, folder: str, name: str, like: Tensor) -> Tensor:
        key = (folder, name)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(
                like.shape, dtype=like.dtype, device="cpu", pin_memory=self._on_gpu
            )
        return self._buffers[key]

    def _write(
        self,
        step: int,
        copies: dict[str, dict[str, Rows]],
        state: dict[str, Any],
        copied: torch.cuda.Event | None,
    ) -> None:
        try:
            if copied is not None:
                if self._device.index is not None:
                    torch.cuda.set_device(self._device)  # a thread begins on the first GPU
                copied.synchronize()
            save_checkpoint(self._folder, step, copies, state, self._ranks)
            if self._ranks.is_first:
                prune_checkpoints(self._folder, self._run.keep_last, self._run.keep_every)
        except BaseException as failure:  # raised again in the thread that trains
            self._failure = failure
