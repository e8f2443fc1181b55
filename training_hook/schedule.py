"""The learning rate as a pure function of the step: warmup, stable plateau, decay (WSD).

Nothing is remembered between steps, so a resumed run needs no scheduler state and a plateau
checkpoint can be continued under a longer schedule. Nemotron Nano 2 warms up over 0.04% of its
tokens, decays over the last 18% and ends at a hundredth of its peak; short runs want 1 to 3% of
warmup.
"""

import math
from dataclasses import dataclass

DECAY_SHAPES = ("linear", "minus_sqrt", "cosine")


@dataclass(frozen=True)
class WarmupStableDecay:
    """Rises linearly to the peak, stays there, then decays to `peak * min_ratio` at the last step.

    The decay over progress x in (0, 1] is `1 - (1 - min_ratio) * x` ("linear"), with sqrt(x) in
    place of x ("minus_sqrt", which falls faster at first; Nemotron 3 Super and Ultra), or with
    (1 - cos(pi x)) / 2 ("cosine", customary for fine-tuning, there without a plateau).
    """

    peak: float
    total_steps: int
    warmup_share: float
    decay_share: float
    decay_shape: str
    min_ratio: float

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise ValueError(f"schedule: peak is {self.peak}; wanted a learning rate above 0")
        if self.total_steps < 1:
            raise ValueError(f"schedule: total_steps is {self.total_steps}; wanted 1 or more")
        for name in ("warmup_share", "decay_share", "min_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"schedule: {name} is {getattr(self, name)}; wanted 0 to 1")
        if self.warmup_share + self.decay_share > 1:
            raise ValueError(
                f"schedule: warmup_share {self.warmup_share} + decay_share {self.decay_share} "
                "is more than the whole run; wanted 1 at most"
            )
        if self.decay_shape not in DECAY_SHAPES:
            raise ValueError(
                f"schedule: decay_shape is {self.decay_shape!r}; "
                f"wanted one of: {', '.join(DECAY_SHAPES)}"
            )

    @property
    def warmup_steps(self) -> int:
        """Steps up to and including the first at the peak."""
        return math.ceil(self.warmup_share * self.total_steps)

    @property
    def decay_steps(self) -> int:
        """Steps below the peak at the end; a run too short for both keeps its warmup."""
        wanted = math.ceil(self.decay_share * self.total_steps)
        return min(wanted, self.total_steps - self.warmup_steps)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 1.

        Raises:
            ValueError: the step lies outside 1 to `total_steps`.
        """
        if not 1 <= step <= self.total_steps:
            raise ValueError(f"schedule: step is {step}; wanted 1 to {self.total_steps}")
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        decayed = step - (self.total_steps - self.decay_steps)
        if decayed <= 0:
            return self.peak
        share = decayed / self.decay_steps
        if self.decay_shape == "minus_sqrt":
            share = math.sqrt(share)
        elif self.decay_shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.peak * (1 - (1 - self.min_ratio) * share)
