"""How many sequences each optimizer step takes: a batch that grows early in a run, or one size.

Early gradients are alike across samples, so small batches learn as much a token there and make more
updates. A ramp is a few stages of whole steps; each step's size and first sample are pure functions
of its number, so resuming needs no state.

Source: Brown et al. 2020, arXiv:2005.14165, table 2.1 and section 2.3 (a batch that grows over the
first 4 to 12 billion tokens).
"""

from bisect import bisect_right
from collections.abc import Sequence


class BatchSizes:
    """The batches of a run.

    Args:
        total_tokens: of the run; rounded up to whole steps.
        sequence_length: tokens of a sequence.
        batch_size: sequences of a batch once the ramp is over.
        ramp: (share, size) in ascending order: until `share` of the tokens are seen, batches have
            `size` sequences.
    """

    def __init__(
        self,
        total_tokens: int,
        sequence_length: int,
        batch_size: int,
        ramp: Sequence[tuple[float, int]] = (),
    ) -> None:
        self._sequence_length = sequence_length
        self._sizes = [*(size for _, size in ramp), batch_size]
        ends = [*(int(share * total_tokens) for share, _ in ramp), total_tokens]
        self._first_steps, self._first_samples = [0], [0]
        for size, end in zip(self._sizes, ends, strict=True):
            left = end - self._first_samples[-1] * sequence_length
            steps = max(0, -(-left // (size * sequence_length)))
            self._first_steps.append(self._first_steps[-1] + steps)
            self._first_samples.append(self._first_samples[-1] + steps * size)
        self.total_steps = self._first_steps.pop()
        """Optimizer steps of the whole run."""

    def of(self, step: int) -> int:
        """Returns the sequences of a step, counted from 1."""
        return self._sizes[self._stage(step - 1)]

    def samples(self, steps: int) -> int:
        """Returns how many samples the first `steps` steps take."""
        stage = self._stage(steps)
        return self._first_samples[stage] + (steps - self._first_steps[stage]) * self._sizes[stage]

    def tokens(self, steps: int) -> int:
        """Returns how many tokens the first `steps` steps take, padding included."""
        return self.samples(steps) * self._sequence_length

    def _stage(self, steps: int) -> int:
        return bisect_right(self._first_steps, steps) - 1
