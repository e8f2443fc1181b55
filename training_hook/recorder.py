"""From the results of steps on the device to rows of metrics, or to the end of a diverged run.

Reading a result waits for the device, so steps are read together, every few. All ranks read the
same numbers and come to the same end; the first one writes them down.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixtures.plan import Plan
from pipelines.progress import Bar, say
from training_hook.batches import HostBatch
from training_hook.device import peak_flops
from training_hook.guard import MOST_IN_A_ROW
from training_hook.metrics import MetricsWriter
from training_hook.model import forward_flops
from training_hook.ranks import Ranks
from training_hook.roll_backs import Diverged
from training_hook.run import PretrainRun
from training_hook.step import StepResult

REPORT_INTERVAL = 10
"""Steps between reads of the losses on a GPU, where each read waits for the device; 1 on a CPU."""


class Recorder:
    """The steps of a run that are done, but not yet written down, and how long they took.

    Args:
        run: what is trained.
        plan: its mixture.
        out: the run's folder.
        step: the checkpoint that the run goes on from, 0 for a new one.
        device: this rank's.
        ranks: of the run.
        verb: pretrain or sft, for messages.
        last_checkpoint: asked when the run diverged.
    """

    def __init__(
        self,
        run: PretrainRun,
        plan: Plan,
        out: Path,
        step: int,
        device: torch.device,
        ranks: Ranks,
        verb: str,
        last_checkpoint: Callable[[], Path | None],
    ) -> None:
        self.run, self.plan, self.device, self.ranks = run, plan, device, ranks
        self._verb, self._last_checkpoint = verb, last_checkpoint
        # forgets what was recorded after the step
        self._metrics = MetricsWriter(out, step) if ranks.is_first else None
        self._pending: list[tuple[int, HostBatch, StepResult]] = []
        self._skipped: list[int] = []
        """Steps whose updates were left out one after the other, up to the last one."""
        self._flops = 3 * forward_flops(run.model, run.sequence_length)
        self.joules: Callable[[], float | None] = lambda: None
        """Energy that this rank's device has used so far."""
        self.start_interval()

    def add(self, step: int, batch: HostBatch, result: StepResult) -> None:
        """Takes a step's result, without waiting for it."""
        self._pending.append((step, batch, result))

    @property
    def due(self) -> bool:
        """Whether the pending steps should be read now."""
        return len(self._pending) >= (1 if self.device.type == "cpu" else REPORT_INTERVAL)

    @property
    def first_skipped(self) -> int | None:
        """The step since which all updates were left out, if the last one was."""
        return self._skipped[0] if self._skipped else None

    def report(self, bar: Bar) -> None:
        """Waits for the device, checks the pending steps and records them.

        Raises:
            Diverged: many updates were left out, one after the other.
        """
        if not self._pending:
            self.start_interval()
            return
        values = [torch.hstack(result) for _, _, result in self._pending]
        read = torch.cat(values).cpu().numpy()  # waits for the device
        rows = np.split(read, np.cumsum([len(value) for value in values])[:-1])
        first, last = self._pending[0][0], self._pending[-1][0]
        tokens = self.run.batches.tokens(last) - self.run.batches.tokens(first - 1)
        measured = self._end_interval(len(self._pending), tokens)
        for (step, batch, _), row in zip(self._pending, rows, strict=True):
            loss, norm, skipped = row[:3].tolist()
            if self._metrics is not None:
                self._metrics.add(self._row(step, batch, row) | measured)
            if skipped:
                self._note_skipped(step, batch, loss, norm)
            else:
                self._skipped = []
        bar.advance(tokens, note=f"step {last}/{self.run.total_steps}  loss {rows[-1][0]:.3f}")
        self._pending = []
        self.start_interval()

    def start_interval(self) -> None:
        """Begins to count time and energy for the next report."""
        self._clock, self._energy = time.monotonic(), self.joules()

    def has_evaluation(self, step: int) -> bool:
        """Says, alike on all ranks, whether the evaluation of a step is there."""
        return self.ranks.any(self._metrics is not None and self._metrics.has_evaluation(step))

    def add_evaluation(self, step: int, rows: Iterable[dict[str, Any]]) -> None:
        """Writes the evaluation of one step at once."""
        if self._metrics is not None:
            self._metrics.add_evaluation(step, rows)

    def close_part(self) -> None:
        """Writes what was recorded for good: called before a checkpoint is saved."""
        if self._metrics is not None:
            self._metrics.close_part()

    def flush(self) -> None:
        """Writes what was recorded."""
        if self._metrics is not None:
            self._metrics.flush()

    def _row(self, step: int, batch: HostBatch, row: np.ndarray) -> dict[str, Any]:
        loss, norm, skipped = row[:3].tolist()
        return {
            "step": step,
            "loss": loss,
            "learning_rate": self.run.schedule.learning_rate(step),
            "gradient_norm": norm,
            "skipped": bool(skipped),
            "tokens": self.run.batches.tokens(step),
            "target_tokens": batch.num_targets,
            "first_sample": int(batch.sample_indices[0]),
            "samples": len(batch.sample_indices),
            "loss_by_part": self._loss_by_part(batch, row[3:]),
        }

    def _loss_by_part(self, batch: HostBatch, nats: np.ndarray) -> dict[str, float]:
        parts, _, _ = self.plan.schedule.locate(batch.sample_indices)
        sums = np.bincount(parts, nats, len(self.plan.parts))
        targets = np.bincount(parts, batch.row_targets, len(self.plan.parts))
        return {
            part["name"]: float(total / count)
            for part, total, count in zip(self.plan.parts, sums, targets, strict=True)
            if count
        }

    def _end_interval(self, steps: int, tokens: int) -> dict[str, float | None]:
        """Returns the columns of metrics that are means over a reporting interval."""
        total = time.monotonic() - self._clock
        joules, peak = self.joules(), peak_flops(self.device)
        on_gpu = self.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(self.device) if on_gpu else 0
        used = np.nan if joules is None else (joules - (self._energy or 0)) / steps
        energy, memories = self.ranks.gather(np.array([used, memory])).T
        peak = peak and peak * self.ranks.world_size
        return {
            "seconds": total / steps,
            "tokens_per_second": tokens / total,
            "mfu": peak and tokens * self._flops / (total * peak),
            "joules": None if np.isnan(energy).any() else float(energy.sum()),
            "memory_bytes": int(memories.max()) if on_gpu else None,
        }

    def _note_skipped(self, step: int, batch: HostBatch, loss: float, norm: float) -> None:
        self._skipped.append(step)
        say(
            f"{self._verb}: step {step} was not learnt from: loss {loss:.4g}, gradient norm "
            f"{norm:.4g}; samples {batch.sample_indices.tolist()}"
        )
        if len(self._skipped) == MOST_IN_A_ROW:
            message = self._diverged(step, batch, loss, norm)
            raise Diverged(message, self._skipped[0], f"loss {loss:.4g}, gradient norm {norm:.4g}")

    def _diverged(self, step: int, batch: HostBatch, loss: float, norm: float) -> str:
        return (
            f"{self._verb}: the last {MOST_IN_A_ROW} updates were left out, so the run does not "
            f"come back by itself: step {step} has loss {loss} and gradient norm {norm}; its "
            f"samples are {batch.sample_indices.tolist()}. Last checkpoint: "
            f"{self._last_checkpoint() or 'none'}. Lower "
            "peak_learning_rate, or raise spike_factor if these norms are right; metrics say at "
            "which step it began. Remove checkpoints from there on before you go on"
        )
