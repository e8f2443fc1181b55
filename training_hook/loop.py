"""The training loop: a run and a mixture in, checkpoints, metrics and held-out scores out.

The loop at each step is: evaluate if it is due, save if it is due, train. What has been done lies
in the output folder, so the same command goes on where it stopped, and every number of the losses
is the same as without the stop (on one device type, with one number of threads and of ranks). The
stream is read ahead by a thread, and each batch carries the stream's state after it, so a
checkpoint knows what was trained on and not what was read.
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixtures.plan import Plan
from mixtures.stream import Stream
from pipelines.progress import Bar, progress, say
from training_hook.batches import Prefetch
from training_hook.checkpoint import MODEL, checkpoints, load_tensors, read_checkpoint
from training_hook.device import energy_counter
from training_hook.evaluation.bits_per_byte import (
    evaluate,
    held_out_documents,
    num_rows,
    total_score,
)
from training_hook.guard import Guard
from training_hook.identity import (
    check_identity,
    environment,
    environment_changes,
    mixture_identity,
)
from training_hook.model import HybridModel
from training_hook.optimizer import adamw, moments, set_learning_rate, set_steps
from training_hook.ranks import ALONE, Ranks
from training_hook.recorder import Recorder
from training_hook.roll_backs import Diverged, RollBack, read_roll_backs, stream_after
from training_hook.run import PretrainRun
from training_hook.saver import Saver, Tensors
from training_hook.sft_run import SftRun
from training_hook.shards import Shards
from training_hook.start import Start
from training_hook.step import train_step
from training_hook.stop import Stop, Stopped


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
        ranks: Ranks = ALONE,
    ) -> None:
        self.run, self.plan, self.out, self.device = run, plan, out, device
        self.start, self.ranks = start, ranks
        self._verb = "sft" if isinstance(run, SftRun) else "pretrain"
        folder = out / "checkpoints"
        done = checkpoints(folder)
        self.step = self._saved = int(ranks.gather(np.array(max(done, default=0)))[0])
        saved = None
        if self.step:  # before anything is built: it may be cut off, or another run's
            saved = read_checkpoint(done[self.step])
            check_identity(done[self.step], saved, run, plan, start)
        self.generator = torch.Generator().manual_seed(run.seed)
        self.model = build_model(run)
        if saved is None and start is None:  # on the CPU: the same weights on every device
            self.model.reset_parameters(self.generator)
        if ranks.world_size == 1:  # several ranks never have all of it on a device
            self.model.to(device)
        self.shards = Shards(self.model, ranks, device, run.reshard)
        if saved is None and start is not None:
            start.load_into(self.shards.rows(self.shards.named_parameters()))
        self.optimizer = adamw(self.shards, run.betas, run.epsilon, run.weight_decay)
        self.guard = Guard(run.spike_factor, device)
        self.stream = Stream(plan.path, run.batch_size, ranks.rank, ranks.world_size, start=0)
        self.roll_backs = read_roll_backs(out)
        if saved is not None:
            self._load(done[self.step], saved)
        known = 0 if saved is None else saved["roll_backs"]
        state = self.stream.state_dict()
        self._stream_state = stream_after(self.roll_backs, known, self.step, state)
        self.stream.load_state_dict(self._stream_state)
        if run.backend != "eager":
            self.model.compile_layers(run.backend)
        self.saver = Saver(folder, run, ranks, device)
        self.optimizer.register_step_pre_hook(self.saver.before_update)
        self.recorder = Recorder(
            run, plan, out, self.step, device, ranks, self._verb, self.saver.last
        )

    @property
    def status(self) -> str:
        """Of a run: "finished" once the last step is done and evaluated, else "stopped"."""
        last = self.step == self.run.total_steps
        return "finished" if last and self.recorder.has_evaluation(self.step) else "stopped"

    def train(self, stop: Stop) -> None:
        """Trains to the last step or until a stop is requested; both leave a checkpoint."""
        steps = range(self.step + 1, self.run.total_steps + 1)
        sizes = (self.run.batches.of(step) for step in steps)
        batches = Prefetch(self.stream, self.device.type == "cuda", sizes)
        try:
            with energy_counter(self.device) as self.recorder.joules:
                self._train(batches, stop)
        finally:
            self.saver.settle()
            self.recorder.flush()
            batches.close()

    def _train(self, batches: Prefetch, stop: Stop) -> None:
        try:
            tokens, total = self.run.batches.tokens, self.run.total_steps
            left = tokens(total) - tokens(self.step)
            with progress(self._verb, total=left, unit="token") as bar:
                self._loop(batches, stop, bar)
        except Stopped:
            self._save()
        self.saver.wait()

    def _loop(self, batches: Prefetch, stop: Stop, bar: Bar) -> None:
        run, total = self.run, self.run.total_steps
        while True:
            last = self.step == total
            if last or self.step % run.evaluation_interval == 0:
                self.recorder.report(bar)
                self._evaluate(stop, bar)
            if last or (self.step and self.step % run.checkpoint_interval == 0):
                self.recorder.report(bar)
                self._save()
            if last:
                return
            stopping, failed = self.ranks.any_of(stop.requested, self.saver.failed)
            if failed:
                self.saver.wait()
            if stopping:
                self.recorder.report(bar)
                raise Stopped
            self._train_step(batches)
            if self.recorder.due:
                self.recorder.report(bar)

    def _train_step(self, batches: Prefetch) -> None:
        run = self.run
        self.step += 1
        set_learning_rate(self.optimizer, run.schedule.learning_rate(self.step))
        self.model.set_low_precision(not run.is_plain(self.step))
        batch = batches.next().of_all(self.ranks)
        result = train_step(self.model, self.optimizer, self.guard, batch, run, self.shards)
        self._stream_state = batch.stream_state
        self.recorder.add(self.step, batch, result)

    def _evaluate(self, stop: Stop, bar: Bar) -> None:
        """Scores the held-out documents, unless this step's scores are there already."""
        if self.recorder.has_evaluation(self.step):
            return
        documents = held_out_documents(self.plan.path, self.run.evaluation_tokens)
        total = num_rows(documents, self.run.sequence_length)
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            bar.advance(0, note=f"scoring held-out documents, {min(100 * done // total, 100)}%")
            if self.ranks.any(stop.requested):
                raise Stopped

        try:
            with self.shards.gathered():
                scores = evaluate(
                    self.model,
                    documents,
                    self.run.sequence_length,
                    self.run.micro_batch_size,
                    self.plan.manifest["end_of_document"],
                    advance,
                    self.ranks,
                )
        except FloatingPointError as error:
            first = self.recorder.first_skipped or self.step
            raise Diverged(str(error), first, str(error)) from error
        self.recorder.add_evaluation(self.step, [score.row() for score in scores])
        say(f"evaluate: step {self.step}: {total_score(scores).bits_per_byte:.4f} bits per byte")
        self.recorder.start_interval()

    def roll_back(self, error: Diverged) -> RollBack:
        """Returns how this run may go back: to which checkpoint, and past which samples.

        Raises:
            Diverged: it may not, because it has gone back too often or has too few samples.
        """
        run, past = self.run, self.roll_backs
        steps = [0, *checkpoints(self.out / "checkpoints")]
        good = [step for step in steps if step < max(1, error.first_step)]
        if len(good) > 1 and past and past[-1].to_step == good[-1]:
            good.pop()  # it did not help
        seen, (began, _) = self._stream_state["samples"], self._stream_state["history"][-1]
        left = self.plan.num_samples - (seen - began)
        needed = run.total_samples - run.batches.samples(good[-1])
        if len(past) >= run.roll_backs or left < needed:
            raise Diverged(
                f"{error}. It has gone back {len(past)} times (roll_backs is {run.roll_backs}), "
                f"and its mixture has {left:,} samples left",
                error.first_step,
                error.reason,
            ) from error
        first = int(seen - (run.batches.samples(self.step) - run.batches.samples(good[-1])))
        return RollBack(self.step, good[-1], (first, seen), self._stream_state, error.reason)

    def _save(self) -> None:
        """Begins a checkpoint of this step; there is nothing to save before the first."""
        if self.step == self._saved:
            return
        self.recorder.close_part()
        state = {
            "run": self.run.parameters(),
            "run_fingerprint": self.run.fingerprint(),
            "mixture": mixture_identity(self.plan),
            "stream": self._stream_state,
            "roll_backs": len(self.roll_backs),
            "guard": self.guard.state_dict(),
            # of the first rank: nothing draws after the weights' first values
            "random": {
                "run": _encode(self.generator.get_state()),
                "cpu": _encode(torch.get_rng_state()),
                "cuda": [_encode(s) for s in self._cuda_random_states()],
            },
            "environment": environment(self.device, self.ranks.world_size),
        }
        if self.start is not None:
            state["start"] = self.start.identity
        self.saver.save(self.step, self._tensors(), state)
        self._saved = self.step
        self.recorder.start_interval()

    def _load(self, path: Path, manifest: dict[str, Any]) -> None:
        """Takes everything from a checkpoint of this run on this mixture."""
        for folder, into in self._tensors().items():
            load_tensors(path, folder, into)
        self.guard.load_state_dict(manifest["guard"])
        set_steps(self.optimizer, self.guard.made)
        self.stream.load_state_dict(manifest["stream"])
        self.generator.set_state(_decode(manifest["random"]["run"]))
        torch.set_rng_state(_decode(manifest["random"]["cpu"]))
        if manifest["random"]["cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(_decode(manifest["random"]["cuda"][0]), self.device)
        here = environment(self.device, self.ranks.world_size)
        changed = environment_changes(manifest["environment"], here)
        say(f"{self._verb}: going on from {path.name}")
        if changed:
            say(f"{self._verb}: losses will agree only up to rounding: {'; '.join(changed)}")

    def _tensors(self) -> Tensors:
        found = moments(self.shards, self.optimizer)
        tensors: dict[str, Any] = {
            MODEL: self.shards.rows(self.shards.named_parameters()),
            **{name: self.shards.rows(tensors.items()) for name, tensors in found.items()},
        }
        amaxes = {name: h.amaxes for name, h in self.model.amax_histories().items()}
        return tensors | ({"amaxes": amaxes} if amaxes else {})

    def _cuda_random_states(self) -> list[Tensor]:
        return [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
