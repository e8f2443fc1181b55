"""The largest values of a product's operands in the last steps, for delayed scaling.

What a micro batch saw comes back as the gradient of a probe: so neither the forward nor the
backward pass changes anything in place, and the compiler takes both whole. The loop takes the
maximum after each micro batch, where autograd would add.

The first step of a run has no history and scales by the values that are there. After that nothing
waits for the device. The history is part of a checkpoint, so a continued run has the same scales.

Source: TransformerEngine, recipe DelayedScaling, amax_compute_algo "max"; its default length of
1,024 is one of micro batches.
"""

import torch
from torch import Tensor, nn

from training_hook.fp8_scaling import Delayed

STEPS = 16
"""Steps whose largest values count."""


class AmaxHistory(nn.Module):
    """Largest values of a product's input and of its gradient by the output."""

    amaxes: Tensor
    """(STEPS, 2), newest first; 0 where there was none, or one that is not finite."""
    expected: Tensor
    seen: Tensor
    probe: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("amaxes", (STEPS, 2)), ("expected", 2), ("seen", 2), ("probe", 2)):
            self.register_buffer(name, torch.zeros(shape), persistent=False)
        self.known = False
        self.recording = False

    @torch.no_grad()
    def begin(self) -> None:
        """Begins a step: what is expected in it is the largest of the steps before."""
        if not self.known:  # the only wait for the device: in a run's first two steps
            self.known = bool((self.amaxes > 0).any(0).all())
        self.expected.copy_(self.amaxes.amax(0))
        self.seen.zero_()
        if not (self.probe.is_leaf and self.probe.requires_grad):  # a move makes it neither
            self.probe = self.probe.detach().requires_grad_()
        self.probe.grad = None
        self.recording = True

    def delayed(self) -> Delayed:
        """Returns what a product takes between `begin` and `end`."""
        return Delayed(self.expected if self.known else None, self.probe)

    @torch.no_grad()
    def record(self) -> None:
        """Takes what a backward pass saw; to be called after each one."""
        if self.probe.grad is not None:
            torch.maximum(self.seen, self.probe.grad, out=self.seen)
            self.probe.grad.zero_()

    @torch.no_grad()
    def end(self) -> None:
        """Ends a step: what was seen in it joins the history, if it was seen and is finite."""
        if self.recording:
            newest = self.seen.where(self.seen.isfinite(), 0)
            self.amaxes.copy_(torch.cat([newest[None], self.amaxes[:-1]]))
            self.recording = False
