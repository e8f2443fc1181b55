"""A pretraining run: a frozen dataclass that says everything that decides its losses.

A run is a Python function that returns one (flows/runs). Paths and the device are settings of the
command line and stay out; the fingerprint covers the rest, and a folder that holds another run's
checkpoints is refused.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from training_hook.batch_sizes import BatchSizes
from training_hook.config import HybridConfig
from training_hook.linear_recipe import MULTIPLES, check_recipe
from training_hook.schedule import WarmupStableDecay

PRECISIONS = ("float32", "bfloat16")
BACKENDS = ("eager", "aot_eager", "inductor")
_COUNTS = (
    "sequence_length",
    "batch_size",
    "micro_batch_size",
    "total_tokens",
    "checkpoint_interval",
    "keep_last",
    "keep_every",
    "evaluation_interval",
    "evaluation_tokens",
)
# What may differ between a run and its continuation: no loss depends on it.
_BESIDE_THE_POINT = (
    "checkpoint_interval",
    "keep_last",
    "keep_every",
    "evaluation_interval",
    "reshard",
)


@dataclass(frozen=True)
class PretrainRun:
    """Everything that a pretraining run is, but where its data and output lie."""

    name: str
    model: HybridConfig
    sequence_length: int
    batch_size: int
    """Sequences in a global batch: one optimizer step."""
    micro_batch_size: int
    """Sequences that go through the model at once; gradients of the others are added in FP32."""
    total_tokens: int
    """Rounded up to whole steps."""
    peak_learning_rate: float
    batch_ramp: tuple[tuple[float, int], ...] = ()
    """Smaller batches at the beginning: ((0.01, 64), (0.03, 128)) takes 64 sequences a step until
    1% of the tokens are seen and 128 until 3%. Shares of the schedule are of steps."""
    warmup_share: float = 0.02
    decay_share: float = 0.18
    decay_shape: str = "linear"
    min_learning_rate_ratio: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    z_loss: float = 0.0
    """Weight of log(Z)^2 in what is minimized; the recorded loss is without it. PaLM has 1e-4."""
    spike_factor: float = 20.0
    """A step whose gradient norm is over this many times the median of the last 100 is not learnt
    from; 0 leaves out only what is not finite. See training_hook.guard."""
    roll_backs: int = 3
    """How many times the run may go back to a checkpoint where one such step follows another; 0
    ends it at once. See training_hook.roll_backs."""
    seed: int = 0
    """Of the weights' initialisation; the order of the data has the mixture's seed."""
    precision: str = "bfloat16"
    """Of activations and matrix products; master weights, gradients and moments are FP32."""
    linear_recipe: str = "plain"
    """Of the layers' products with weights: "plain" in `precision`, "fp8_tensor" as Nemotron-H,
    "fp8_block" as Nemotron Nano 2, "fp8_tensor_e4m3" and "fp8_delayed" as variants of the
    first, see `fp8`."""
    plain_first_layers: int = 2
    """Layers at the beginning whose products stay "plain". A layer of M or - has two of them: with
    the last two these are the first and last 4 that Nemotron-H and Nano 2 keep in BF16."""
    plain_last_layers: int = 2
    """Layers at the end whose products stay "plain"."""
    plain_step_share: float = 0.0
    """Share of the steps, the last ones, in which all products are "plain"."""
    deterministic: bool = False
    """Only deterministic algorithms: a GPU run that is killed and resumed then gives the same bits
    as one that is not. On a CPU it does so anyway. See `determinism`."""
    backend: str = "eager"
    """"inductor" compiles each layer (for GPUs), "aot_eager" traces it as inductor would."""
    checkpoint_interval: int = 1_000
    """Steps between checkpoints; the last step always has one."""
    keep_last: int = 2
    """Newest checkpoints that stay."""
    keep_every: int = 10_000
    """Checkpoints at multiples of this many steps stay, too."""
    evaluation_interval: int = 1_000
    """Steps between held-out evaluations; before the first and after the last step always."""
    evaluation_tokens: int = 1_000_000
    """Held-out tokens scored for each part at most, whole documents in the mixture's order."""
    reshard: bool = False
    """On several GPUs: gather weights by layer, as models that do not fit otherwise need it,
    instead of once a step. See training_hook.shards."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)}; wanted 1 or more")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"{self.name}: batch_size {self.batch_size} is not a multiple of "
                f"micro_batch_size {self.micro_batch_size}"
            )
        self._check_batch_ramp()
        for name, known in (("precision", PRECISIONS), ("backend", BACKENDS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{self.name}: {name} is {getattr(self, name)!r}; "
                    f"wanted one of: {', '.join(known)}"
                )
        if not self.clip_norm > 0:
            raise ValueError(f"{self.name}: clip_norm is {self.clip_norm}; wanted above 0")
        if not self.z_loss >= 0:
            raise ValueError(f"{self.name}: z_loss is {self.z_loss}; wanted 0 or more")
        if self.roll_backs < 0:
            raise ValueError(f"{self.name}: roll_backs is {self.roll_backs}; wanted 0 or more")
        if self.spike_factor and not self.spike_factor > 1:
            raise ValueError(
                f"{self.name}: spike_factor is {self.spike_factor}; wanted above 1, or 0 for none"
            )
        self._check_linear_recipe()
        _ = self.schedule  # its settings are checked where they are used

    def _check_batch_ramp(self) -> None:
        shares = [share for share, _ in self.batch_ramp]
        sizes = [size for _, size in self.batch_ramp]
        if shares != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
            raise ValueError(
                f"{self.name}: batch_ramp {self.batch_ramp} has the shares {shares}; wanted "
                "ascending ones between 0 and 1"
            )
        if wrong := [s for s in sizes if s < 1 or s % self.micro_batch_size or s > self.batch_size]:
            raise ValueError(
                f"{self.name}: batch_ramp has batches of {wrong} sequences; wanted multiples of "
                f"micro_batch_size {self.micro_batch_size} up to batch_size {self.batch_size}"
            )

    def _check_linear_recipe(self) -> None:
        check_recipe(self.linear_recipe)
        for name in ("plain_first_layers", "plain_last_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)}; wanted 0 or more")
        if not 0 <= self.plain_step_share < 1:
            raise ValueError(
                f"{self.name}: plain_step_share is {self.plain_step_share}; wanted 0 up to below 1 "
                "(for 1, linear_recipe 'plain')"
            )
        if self.reshard and self.linear_recipe == "fp8_delayed":
            raise ValueError(
                f"{self.name}: fp8_delayed needs weights that stay for a step, reshard frees them; "
                "take linear_recipe 'fp8_tensor', or reshard False"
            )
        multiple = MULTIPLES[self.linear_recipe]
        tokens = self.micro_batch_size * self.sequence_length
        if tokens % multiple:
            raise ValueError(
                f"{self.name}: micro_batch_size {self.micro_batch_size} * sequence_length "
                f"{self.sequence_length} is {tokens}; {self.linear_recipe} wants a multiple of "
                f"{multiple}"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a global batch, once a ramp is over."""
        return self.batch_size * self.sequence_length

    @cached_property
    def batches(self) -> BatchSizes:
        """The sequences of each step."""
        return BatchSizes(self.total_tokens, self.sequence_length, self.batch_size, self.batch_ramp)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.batches.total_steps

    @property
    def total_samples(self) -> int:
        """Sequences of the whole run."""
        return self.batches.samples(self.total_steps)

    @property
    def schedule(self) -> WarmupStableDecay:
        """The learning rate of each step."""
        return WarmupStableDecay(
            peak=self.peak_learning_rate,
            total_steps=self.total_steps,
            warmup_share=self.warmup_share,
            decay_share=self.decay_share,
            decay_shape=self.decay_shape,
            min_ratio=self.min_learning_rate_ratio,
        )

    def is_plain(self, step: int) -> bool:
        """Returns whether all products of a step, counted from 1, are "plain"."""
        plain_steps = math.ceil(self.plain_step_share * self.total_steps)
        return self.linear_recipe == "plain" or step > self.total_steps - plain_steps

    def with_steps(self, steps: int) -> "PretrainRun":
        """Returns the same run with another length; its schedule stretches with it.

        A ramp stretches, too, so that the steps may be a few less where the lengths of its stages
        cannot be had.
        """
        if steps < 1:
            raise ValueError(f"{self.name}: steps is {steps}; wanted 1 or more")

        def resized(samples: int) -> PretrainRun:
            return replace(self, total_tokens=samples * self.sequence_length)

        if not self.batch_ramp:
            return resized(steps * self.batch_size)
        lengths = range(1, steps * self.batch_size + 1)
        fitting = bisect_right(lengths, steps, key=lambda samples: resized(samples).total_steps)
        return resized(max(1, fitting))

    def parameters(self) -> dict[str, Any]:
        """Returns all fields as JSON-safe data, nested dataclasses included."""
        return json.loads(json.dumps(asdict(self)))

    def fingerprint(self) -> str:
        """Returns the BLAKE2b-128 of everything that decides the losses, as hexadecimal digits."""
        return run_fingerprint(self.parameters())


def run_fingerprint(parameters: Mapping[str, Any]) -> str:
    """Returns the fingerprint of a run's parameters as a checkpoint stores them."""
    identity = {k: v for k, v in parameters.items() if k not in _BESIDE_THE_POINT}
    text = json.dumps(identity, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def run_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Returns one "field: stored value, wanted value" for each field that decides the losses."""
    return [
        f"{name}: {stored.get(name)!r} there, {wanted.get(name)!r} here"
        for name in sorted(stored.keys() | wanted.keys())
        if name not in _BESIDE_THE_POINT and stored.get(name) != wanted.get(name)
    ]
