"""Which updates a run leaves out: those of steps that diverged, decided where the gradients are.

A step whose loss or gradient norm is not finite, or whose norm is far over what it was of late,
changes neither weights nor moments. The decision is made on the device and the fused optimizer
obeys it, so no step waits for the host. The stream goes on, so the samples of such a step are
passed by; its row in the metrics says so, and with it the lineage: seen, but not learnt from.

Clipping bounds the length of an update, not its direction: hence the bound on the norm itself, as
in PaLM (arXiv:2204.02311, section 5.1), which went back to a checkpoint and passed by the batches
of spikes instead.
"""

from typing import Any

import torch
from torch import Tensor

WINDOW = 100
"""Norms of updates that were made, of which the median is taken."""
JUDGED_FROM = 20
"""Norms without which no norm counts as a spike."""
MOST_IN_A_ROW = 20
"""Updates left out one after the other that end a run: it does not come back by itself."""


class Guard:
    """Remembers the gradient norms of the last updates and judges the next one.

    Args:
        spike_factor: how many times the median a norm may be; 0 lets every finite norm pass.
        device: where losses and norms are.
    """

    def __init__(self, spike_factor: float, device: torch.device) -> None:
        self._factor = spike_factor
        self._norms = torch.full((WINDOW,), torch.nan, device=device)
        self._made = torch.zeros((), dtype=torch.int64, device=device)

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Returns 1 if a step's update has to be left out, else 0: FP32, on the device."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        if self._factor:
            bound = self._factor * self._norms.nanmedian()
            bad |= (norm > bound) & (self._made >= JUDGED_FROM)
        place = self._made % WINDOW
        self._norms[place] = torch.where(bad, self._norms[place], norm)
        self._made += ~bad
        return bad.float()

    def state_dict(self) -> dict[str, Any]:
        """Returns what continues the guard, JSON-safe."""
        filled = int(self._made.clamp(max=WINDOW))
        return {"made": int(self._made), "norms": self._norms[:filled].tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where a state was taken."""
        norms = torch.tensor(state["norms"], dtype=torch.float32, device=self._norms.device)
        self._norms[: len(norms)] = norms
        self._made.fill_(state["made"])

    @property
    def made(self) -> int:
        """Updates that were made; waits for the device."""
        return int(self._made)
