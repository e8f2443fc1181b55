"""The training loop: a run and a mixture in, checkpoints, metrics and held-out scores out.

The loop at each step is: evaluate if it is due, save if it is due, train. What has been done lies
in the output folder, so the same command goes on where it stopped, and every number of the losses
is the same as without the stop (on one device type, with one number of threads). The stream is read
ahead by a thread, and each batch carries the stream's state after it, so a checkpoint knows what
was trained on and not what was read.
"""

import base64
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixtures.plan import Plan
from mixtures.stream import Stream
from pipelines.progress import Bar, progress, say
from training_hook.batches import HostBatch, Prefetch
from training_hook.checkpoint import (
    checkpoints,
    load_tensors,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from training_hook.device import energy_counter, peak_flops
from training_hook.evaluate import evaluate, held_out_documents, num_rows, total_score
from training_hook.guard import MOST_IN_A_ROW, Guard
from training_hook.metrics import MetricsWriter
from training_hook.model import HybridModel, forward_flops
from training_hook.optimizer import adamw, moments, set_learning_rate, set_steps
from training_hook.run import PretrainRun, run_differences
from training_hook.sft_run import SftRun
from training_hook.start import Start
from training_hook.step import StepResult, train_step
from training_hook.stop import Stop, Stopped

REPORT_INTERVAL = 10
"""Steps between reads of the losses on a GPU, where each read waits for the device; 1 on a CPU."""


def build_model(run: PretrainRun) -> HybridModel:
    """Returns the model of a run without values for its weights.

    Raises:
        ValueError: the run's linear recipe cannot have the model's sizes, or no layer has it.
    """
    ends = (run.plain_first_layers, run.plain_last_layers)
    model = HybridModel(run.model, run.linear_recipe, ends)
    model.compute_dtype = getattr(torch, run.precision)
    return model


class Training:
    """A run in progress: the model and optimizer on their device, at some step.

    Its first weights are drawn, or those of `start`.
    """

    def __init__(
        self,
        run: PretrainRun,
        plan: Plan,
        out: Path,
        device: torch.device,
        start: Start | None = None,
    ) -> None:
        self.run, self.plan, self.out, self.device = run, plan, out, device
        self.start = start
        self._verb = "sft" if isinstance(run, SftRun) else "pretrain"
        self._folder = out / "checkpoints"
        done = checkpoints(self._folder)
        saved = None
        if done:  # before anything is built: it may be cut off, or another run's
            saved = read_checkpoint(done[max(done)])
            check_identity(done[max(done)], saved, run, plan, start)
        self.generator = torch.Generator().manual_seed(run.seed)
        self.model = build_model(run)
        self.step = max(done, default=0)
        if not done and start is None:  # on the CPU: the same weights on every device
            self.model.reset_parameters(self.generator)
        elif not done and start is not None:
            start.load_into(dict(self.model.named_parameters()))
        self.model.to(device)
        self.optimizer = adamw(self.model, run.betas, run.epsilon, run.weight_decay)
        self.guard = Guard(run.spike_factor, device)
        self.stream = Stream(plan.path, run.batch_size, rank=0, world_size=1, start=0)
        self._stream_state = self.stream.state_dict()
        if saved is not None:
            self._load(done[self.step], saved)
        if run.backend != "eager":
            self.model.compile_layers(run.backend)
        self.metrics = MetricsWriter(out, self.step)  # forgets what was recorded after the step
        self._pending: list[tuple[int, HostBatch, StepResult]] = []
        self._skipped_in_a_row = 0
        self._flops = 3 * forward_flops(run.model, run.sequence_length)
        self._joules: Callable[[], float | None] = lambda: None
        self._start_interval()

    def train(self, stop: Stop) -> None:
        """Trains to the last step or until a stop is requested; both leave a checkpoint."""
        steps = range(self.step + 1, self.run.total_steps + 1)
        sizes = (self.run.batches.of(step) for step in steps)
        batches = Prefetch(self.stream, self.device.type == "cuda", sizes)
        try:
            with energy_counter(self.device) as self._joules:
                self._train(batches, stop)
        finally:
            self.metrics.flush()
            batches.close()

    def _train(self, batches: Prefetch, stop: Stop) -> None:
        try:
            tokens, total = self.run.batches.tokens, self.run.total_steps
            left = tokens(total) - tokens(self.step)
            with progress(self._verb, total=left, unit="token") as bar:
                self._loop(batches, stop, bar)
        except Stopped:
            self._save()

    def _loop(self, batches: Prefetch, stop: Stop, bar: Bar) -> None:
        run, total = self.run, self.run.total_steps
        while True:
            last = self.step == total
            if last or self.step % run.evaluation_interval == 0:
                self._report(bar)
                self._evaluate(stop, bar)
            if last or (self.step and self.step % run.checkpoint_interval == 0):
                self._report(bar)
                self._save()
            if last:
                return
            if stop.requested:
                self._report(bar)
                raise Stopped
            self.step += 1
            set_learning_rate(self.optimizer, run.schedule.learning_rate(self.step))
            self.model.set_low_precision(not run.is_plain(self.step))
            batch = batches.next()
            result = train_step(self.model, self.optimizer, self.guard, batch, run)
            self._stream_state = batch.stream_state
            self._pending.append((self.step, batch, result))
            if len(self._pending) >= (1 if self.device.type == "cpu" else REPORT_INTERVAL):
                self._report(bar)

    def _report(self, bar: Bar) -> None:
        """Waits for the device, checks the pending steps and records them."""
        if not self._pending:
            self._start_interval()
            return
        values = [torch.hstack(result) for _, _, result in self._pending]
        read = torch.cat(values).cpu().numpy()  # waits for the device
        rows = np.split(read, np.cumsum([len(value) for value in values])[:-1])
        tokens = self.run.batches.tokens
        before = tokens(self._pending[0][0] - 1)
        measured = self._end_interval(len(self._pending), tokens(self.step) - before)
        for (step, batch, _), row in zip(self._pending, rows, strict=True):
            loss, norm, skipped = row[:3].tolist()
            self.metrics.add(
                {
                    "step": step,
                    "loss": loss,
                    "learning_rate": self.run.schedule.learning_rate(step),
                    "gradient_norm": norm,
                    "skipped": bool(skipped),
                    "tokens": tokens(step),
                    "target_tokens": batch.num_targets,
                    "first_sample": int(batch.sample_indices[0]),
                    "samples": len(batch.sample_indices),
                    "loss_by_part": self._loss_by_part(batch, row[3:]),
                }
                | measured
            )
            if skipped:
                self._note_skipped(step, batch, loss, norm)
            else:
                self._skipped_in_a_row = 0
        bar.advance(
            tokens(self.step) - before,
            note=f"step {self.step}/{self.run.total_steps}  loss {rows[-1][0]:.3f}",
        )
        self._pending = []
        self._start_interval()

    def _loss_by_part(self, batch: HostBatch, nats: np.ndarray) -> dict[str, float]:
        parts, _, _ = self.plan.schedule.locate(batch.sample_indices)
        sums = np.bincount(parts, nats, len(self.plan.parts))
        targets = np.bincount(parts, batch.row_targets, len(self.plan.parts))
        return {
            part["name"]: float(total / count)
            for part, total, count in zip(self.plan.parts, sums, targets, strict=True)
            if count
        }

    def _start_interval(self) -> None:
        self._clock, self._energy = time.monotonic(), self._joules()

    def _end_interval(self, steps: int, tokens: int) -> dict[str, float | None]:
        """Returns the columns of metrics that are means over a reporting interval."""
        total = time.monotonic() - self._clock
        joules, peak = self._joules(), peak_flops(self.device)
        on_gpu = self.device.type == "cuda"
        return {
            "seconds": total / steps,
            "tokens_per_second": tokens / total,
            "mfu": peak and tokens * self._flops / (total * peak),
            "joules": None if joules is None else (joules - (self._energy or 0)) / steps,
            "memory_bytes": torch.cuda.max_memory_allocated(self.device) if on_gpu else None,
        }

    def _note_skipped(self, step: int, batch: HostBatch, loss: float, norm: float) -> None:
        self._skipped_in_a_row += 1
        say(
            f"{self._verb}: step {step} was not learnt from: loss {loss:.4g}, gradient norm "
            f"{norm:.4g}; samples {batch.sample_indices.tolist()}"
        )
        if self._skipped_in_a_row == MOST_IN_A_ROW:
            raise FloatingPointError(self._diverged(step, batch, loss, norm))

    def _diverged(self, step: int, batch: HostBatch, loss: float, norm: float) -> str:
        saved = checkpoints(self._folder)
        good = saved[max(saved)] if saved else "none"
        return (
            f"{self._verb}: the last {MOST_IN_A_ROW} updates were left out, so the run does not "
            f"come back by itself: step {step} has loss {loss} and gradient norm {norm}; its "
            f"samples are {batch.sample_indices.tolist()}. Last checkpoint: {good}. Lower "
            "peak_learning_rate, or raise spike_factor if these norms are right; metrics say at "
            "which step it began. Remove checkpoints from there on before you go on"
        )

    def _evaluate(self, stop: Stop, bar: Bar) -> None:
        """Scores the held-out documents, unless this step's scores are there already."""
        if self.metrics.has_evaluation(self.step):
            return
        documents = held_out_documents(self.plan.path, self.run.evaluation_tokens)
        total = num_rows(documents, self.run.sequence_length)
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            bar.advance(0, note=f"scoring held-out documents, {min(100 * done // total, 100)}%")
            if stop.requested:
                raise Stopped

        scores = evaluate(
            self.model,
            documents,
            self.run.sequence_length,
            self.run.micro_batch_size,
            self.plan.manifest["end_of_document"],
            advance,
        )
        self.metrics.add_evaluation(self.step, [score.row() for score in scores])
        say(f"evaluate: step {self.step}: {total_score(scores).bits_per_byte:.4f} bits per byte")
        self._start_interval()

    def _save(self) -> None:
        """Leaves a checkpoint of this step; there is nothing to save before the first."""
        if self.step == 0 or self.step in checkpoints(self._folder):
            return
        self.metrics.close_part()
        state = {
            "run": self.run.parameters(),
            "run_fingerprint": self.run.fingerprint(),
            "mixture": mixture_identity(self.plan),
            "stream": self._stream_state,
            "guard": self.guard.state_dict(),
            "random": {
                "run": _encode(self.generator.get_state()),
                "cpu": _encode(torch.get_rng_state()),
                "cuda": [_encode(state) for state in torch.cuda.get_rng_state_all()],
            },
            "environment": environment(self.device),
        }
        if self.start is not None:
            state["start"] = self.start.identity
        save_checkpoint(self._folder, self.step, self._tensors(), state)
        prune_checkpoints(self._folder, self.run.keep_last, self.run.keep_every)
        self._start_interval()

    def _load(self, path: Path, manifest: dict[str, Any]) -> None:
        """Takes everything from a checkpoint of this run on this mixture."""
        for folder, into in self._tensors().items():
            load_tensors(path, folder, into)
        self.guard.load_state_dict(manifest["guard"])
        set_steps(self.optimizer, self.guard.made)
        self.stream.load_state_dict(manifest["stream"])
        self._stream_state = manifest["stream"]
        self.generator.set_state(_decode(manifest["random"]["run"]))
        torch.set_rng_state(_decode(manifest["random"]["cpu"]))
        if len(manifest["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([_decode(s) for s in manifest["random"]["cuda"]])
        there, here = manifest["environment"], environment(self.device)
        changed = [
            f"{k} {there.get(k)} then, {here[k]} now" for k in here if there.get(k) != here[k]
        ]
        say(f"{self._verb}: going on from {path.name}")
        if changed:
            say(f"{self._verb}: losses will agree only up to rounding: {'; '.join(changed)}")

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        weights: dict[str, Tensor] = dict(self.model.named_parameters())
        tensors = {"model": weights, **moments(self.model, self.optimizer)}
        amaxes = {name: h.amaxes for name, h in self.model.amax_histories().items()}
        return tensors | ({"amaxes": amaxes} if amaxes else {})


def environment(device: torch.device) -> dict[str, Any]:
    """Returns what rounding depends on beside the run; only an equal one resumes bit for bit."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"torch": torch.__version__, "device": name, "threads": torch.get_num_threads()}


def mixture_identity(plan: Plan) -> dict[str, str]:
    """Returns the fingerprints of a mixture and of its vocabulary."""
    return {"fingerprint": plan.fingerprint, "vocabulary": plan.manifest["vocabulary"]}


def check_identity(
    where: Path, stored: dict[str, Any], run: PretrainRun, plan: Plan, start: Start | None
) -> None:
    """Checks that a folder or checkpoint is of this run, this mixture and this start.

    Raises:
        ValueError: it is not; the message names what differs.
    """
    differences = run_differences(stored["run"], run.parameters())
    if differences:
        raise ValueError(
            f"{where} belongs to another run; {'; '.join(differences)}. "
            "Choose another --out, or give the settings that it was started with"
        )
    here = mixture_identity(plan)
    if stored["mixture"] != here:
        raise ValueError(
            f"{where} was trained on another mixture: {stored['mixture']} there, {here} here. "
            "Choose another --out, or give that mixture"
        )
    started = None if start is None else start.identity
    if stored.get("start") != started:
        raise ValueError(
            f"{where} was started from {stored.get('start') or 'fresh weights'}, here it is "
            f"{started or 'fresh weights'}. Choose another --out, or give that start"
        )


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
