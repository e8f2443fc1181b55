"""Timed optimizer steps of the real loop, and what a record says about the machine.

Stream, prefetch, packed documents, FP32 masters, clipping and fused AdamW are those of `pretrain`,
each step has its learning rate of the run's schedule, and nothing is retried with smaller batches:
where memory does not suffice it fails.

MFU is 3 * forward FLOPs * tokens/s over the dense BF16 peak, also where products run in FP8;
forward FLOPs are those of products with weights (head included, embedding not), the scan's 7 *
inner * state a token and Mamba layer, and causal attention to half the length (not shortened by
document borders): Megatron-LM's count. Energy is the GPU board's, by NVML's counter, over the timed
steps.
"""

import itertools
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks.kernel_profile import kernel_times
from mixtures.stream import Stream
from pipelines.progress import say
from training_hook.batches import HostBatch, Prefetch
from training_hook.device import peak_flops
from training_hook.guard import Guard
from training_hook.loop import build_model
from training_hook.model import HybridModel, forward_flops, num_parameters
from training_hook.optimizer import adamw, set_learning_rate
from training_hook.ranks import ALONE, Ranks
from training_hook.run import PretrainRun
from training_hook.shards import Shards
from training_hook.step import StepResult, train_step

WARM_STEPS = 4  # the first compiles, the next fill the allocator
PACKAGES = ("torch", "triton", "numpy", "numba", "pyarrow", "tokenizers", "nvidia-ml-py")
Joules = Callable[[], float | None]


def drawn_model(run: PretrainRun, device: torch.device) -> HybridModel:
    """Returns the model that `pretrain` begins a run with, not compiled."""
    with device:
        model = build_model(run)
    model.reset_parameters(torch.Generator(device).manual_seed(run.seed))
    return model


def fresh_model(run: PretrainRun, device: torch.device) -> HybridModel:
    """Returns the model that `pretrain` begins a run with, compiled as it does."""
    model = drawn_model(run, device)
    model.compile_layers(run.backend)
    return model


def cut(batch: HostBatch, length: int) -> HostBatch:
    """Returns the beginnings of a batch's rows, as if it had been mixed with a shorter length."""
    if batch.tokens.shape[1] == length + 1:
        return batch
    mask = None if batch.loss_mask is None else batch.loss_mask[:, :length]
    targets = np.full(len(batch.tokens), length) if mask is None else mask.sum(1).numpy()
    return replace(
        batch,
        tokens=batch.tokens[:, : length + 1],
        loss_mask=mask,
        boundaries=batch.boundaries.clamp(max=length + 1),
        row_targets=targets,
    )


class TimedTraining:
    """A model with its optimizer and data, and steps of it.

    The batch may have another size at each call, in micro batches of one size.

    Args:
        run: what is trained.
        mixture: folder of `gristmill mix`, its sequences as long as the run's or longer.
        device: where.
        make_model: for another model than the run's, with the methods that `train_step` calls; of
            a process alone.
        ranks: who share the model, each on its device.
    """

    def __init__(
        self,
        run: PretrainRun,
        mixture: Path,
        device: torch.device,
        make_model: Callable[[PretrainRun, torch.device], nn.Module] = fresh_model,
        ranks: Ranks = ALONE,
    ) -> None:
        self.mixture, self.device, self.on_gpu = mixture, device, device.type == "cuda"
        self.ranks = ranks
        start = time.perf_counter()
        if ranks.world_size == 1:
            self.model = cast(HybridModel, make_model(run, device))
            self.shards = Shards(self.model)
        else:
            self.model = drawn_model(run, device)
            self.shards = Shards(self.model, ranks, device, run.reshard)
            self.model.compile_layers(run.backend)
        self.optimizer = adamw(self.shards, run.betas, run.epsilon, run.weight_decay)
        self.guard = Guard(run.spike_factor, device)
        self.build_seconds = time.perf_counter() - start
        self.first_seconds: float | None = None
        self.samples = 0
        self.results: list[StepResult] = []

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def step(self, run: PretrainRun, batches: Prefetch) -> None:
        """Does one step; nothing waits for the device."""
        number = min(len(self.results) + 1, run.total_steps)
        set_learning_rate(self.optimizer, run.schedule.learning_rate(number))
        if isinstance(self.model, HybridModel):
            self.model.set_low_precision(not run.is_plain(number))
        batch = self.prepared(batches.next(), run.sequence_length).of_all(self.ranks)
        self.samples += len(batch.sample_indices)
        self.results.append(
            train_step(self.model, self.optimizer, self.guard, batch, run, self.shards)
        )

    def prepared(self, batch: HostBatch, length: int) -> HostBatch:
        """Returns what a step of a sequence length takes of a batch."""
        return cut(batch, length)

    def read(self, run: PretrainRun) -> Prefetch:
        ranks = self.ranks
        stream = Stream(
            self.mixture, run.batch_size, ranks.rank, ranks.world_size, start=self.samples
        )
        return Prefetch(stream, self.on_gpu, itertools.repeat(run.batch_size), depth=4)

    def warm(self, run: PretrainRun, steps: int) -> None:
        """Does steps and waits after each; the first of all compiles."""
        with closing(self.read(run)) as batches:
            for _ in range(steps):
                start = time.perf_counter()
                self.step(run, batches)
                self.synchronize()
                if self.first_seconds is None:
                    self.first_seconds = time.perf_counter() - start
                    say(f"{run.name}: first step (with compiling) {self.first_seconds:.1f} s")

    def measure(
        self, run: PretrainRun, steps: int, joules: Joules, profile: bool
    ) -> dict[str, Any]:
        """Times steps and returns the record."""
        with closing(self.read(run)) as batches:
            record = self._timed(run, steps, joules, batches)
            if profile and self.on_gpu:
                record |= kernel_times(lambda: self.step(run, batches))
        say(
            f"{run.name}: {record['tokens_per_second']:,.0f} tokens/s, MFU {record['mfu']}, "
            f"{record['peak_memory_gib']} GiB, {record['watts']} W, "
            f"loss {record['losses'][0]:.3f} to {record['losses'][-1]:.3f}"
        )
        return {"name": run.name, **record, "run": asdict(run)}

    def _timed(
        self, run: PretrainRun, steps: int, joules: Joules, batches: Prefetch
    ) -> dict[str, Any]:
        self.synchronize()
        marks = []
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        clock = [0.0] * (steps + 1)
        energy, begin = joules(), time.perf_counter()
        for number in range(steps + 1):
            if marks:
                marks[number].record()
            clock[number] = time.perf_counter()
            if number < steps:
                self.step(run, batches)
        self.synchronize()
        seconds = time.perf_counter() - begin
        after = joules()
        times = [marks[0].elapsed_time(mark) / 1e3 for mark in marks] if marks else clock
        step_ms = [1e3 * (b - a) for a, b in itertools.pairwise(times)]
        peak = torch.cuda.max_memory_allocated(self.device) if self.on_gpu else None
        return {
            **self._about(run, steps, seconds, step_ms),
            "peak_memory_gib": None if peak is None else round(peak / 2**30, 2),
            **energy_used(energy, after, seconds, steps * run.tokens_per_step),
            **self._losses(),
        }

    def _about(
        self, run: PretrainRun, steps: int, seconds: float, step_ms: list[float]
    ) -> dict[str, Any]:
        rate = steps * run.tokens_per_step / seconds
        flops = 3 * forward_flops(run.model, run.sequence_length)
        peak = peak_flops(self.device)
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "precision": run.precision,
            "linear_recipe": run.linear_recipe,
            "backend": run.backend,
            "sequence_length": run.sequence_length,
            "micro_batch_size": run.micro_batch_size,
            "batch_size": run.batch_size,
            "steps_timed": steps,
            "build_s": round(self.build_seconds, 2),
            "first_step_s": None if self.first_seconds is None else round(self.first_seconds, 2),
            "seconds": round(seconds, 4),
            "step_ms": {
                "median": round(statistics.median(step_ms), 2),
                "min": round(min(step_ms), 2),
                "max": round(max(step_ms), 2),
            },
            "tokens_per_second": round(rate, 1),
            "flops_per_token": flops,
            "tflops_per_second": round(rate * flops / 1e12, 3),
            "mfu": None if peak is None else round(rate * flops / peak / self.ranks.world_size, 4),
        }

    def _losses(self) -> dict[str, list[float]]:
        found = torch.stack([torch.stack([r.loss, r.gradient_norm]) for r in self.results])
        losses, norms = found.T.tolist()
        return {
            "losses": [round(loss, 4) for loss in losses],
            "gradient_norms": [round(norm, 4) for norm in norms],
        }


def energy_used(
    before: float | None, after: float | None, seconds: float, tokens: int
) -> dict[str, float | None]:
    """Returns the mean power and the energy of 1,000 tokens, None where there is no counter."""
    if before is None or after is None:
        return {"watts": None, "joules_per_1000_tokens": None}
    used = after - before
    return {
        "watts": round(used / seconds, 1),
        "joules_per_1000_tokens": round(used / tokens * 1e3, 3),
    }


def measure(
    run: PretrainRun,
    mixture: Path,
    device: torch.device,
    steps: int,
    joules: Joules,
    profile: bool,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Times optimizer steps of a run after the first few and returns the record.

    Of several ranks, each on its device, the record has the tokens of all and the memory and the
    energy of this one.
    """
    run = replace(run, name=f"{run.name} {run.batch_size // run.micro_batch_size} x")
    say(f"{run.name}: {num_parameters(run.model) / 1e6:.0f} M parameters, building")
    training = TimedTraining(run, mixture, device, ranks=ranks)
    training.warm(run, WARM_STEPS)
    return training.measure(run, steps, joules, profile)


def find_commit(given: str | None) -> str:
    """Returns the commit that was given, or asks git, or says that neither is there."""
    if given:
        return given
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown (no git here; give --commit)"
    return found.stdout.strip() or "unknown (no repository here; give --commit)"


def versions(others: tuple[str, ...] = ()) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
