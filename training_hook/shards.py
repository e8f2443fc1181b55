"""The weights of a model over the ranks of a run: FSDP2 by layer, or all of them in one process.

Weights, gradients and moments are spread by rows, in FP32, and gathered and reduced in FP32: time
steps, decays and norms must not be rounded, and `Linear` casts by itself. Two ways:

Gathered once a step (the default): all weights before the first micro batch, so that each is cast
once for all of them, as on one GPU; gradients add up whole and are scattered in the last micro
batch, layer by layer behind its backward pass. It takes 8 bytes a parameter beside the shards.

Gathered by layer (`reshard`): before the layer's forward and again before its backward pass, freed
after each, its gradients scattered after each. What a rank keeps falls with the number of ranks,
and a step of n micro batches moves 2n + n instead of 1 + 1 times the weights.

The optimizer works on each rank's own rows as plain tensors: AdamW is elementwise, so that is
exact, and saves the dispatch of some hundred DTensors a step.

Source: Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, stage 3; Zhao et al. 2023 (FSDP),
arXiv:2304.11277.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from training_hook.model import HybridModel
from training_hook.ranks import ALONE, Ranks
from training_hook.rows import Rows, whole


class Shards:
    """A model and what this rank holds of its weights.

    Args:
        model: with values; on its device, or, with several ranks, anywhere: they move its weights.
        ranks: whose model it is; all of them have the same values.
        device: this rank's.
        reshard: gathers weights by layer instead of once a step.
    """

    def __init__(
        self,
        model: HybridModel,
        ranks: Ranks = ALONE,
        device: torch.device | None = None,
        reshard: bool = False,
    ) -> None:
        self.model, self.ranks = model, ranks
        self._modules: list[Any] = []
        self._spread: dict[str, Any] = {}
        self._reshard = reshard and ranks.world_size > 1
        self._parameters = dict(model.named_parameters())
        if ranks.world_size > 1 and device is not None:
            self._modules = _shard(model, ranks, device, reshard)
            self._spread = dict(model.named_parameters())
            self._parameters = {
                name: nn.Parameter(p.to_local().detach()) for name, p in self._spread.items()
            }

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Returns this rank's rows of every weight by name, as leaves for an optimizer."""
        return iter(self._parameters.items())

    def rows(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Rows]:
        """Says which rows of the weights, or of moments with their names, tensors hold."""
        if not self._spread:
            return {name: whole(tensor) for name, tensor in named}
        return {
            name: Rows(tensor.detach(), self._first_row(name), tuple(self._spread[name].shape))
            for name, tensor in named
        }

    @contextmanager
    def step(self) -> Iterator[None]:
        """Has weights at hand for the forward and backward passes of one step."""
        with self.gathered():
            if self._reshard:
                yield
                return
            # FSDP spreads what autograd hands it
            with self.model.held_weights(adds=not self._modules):
                yield
                self._join_amaxes()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Has weights at hand for forward passes; those of one process always are."""
        if not self._reshard:
            for module in self._modules:
                module.unshard()
        yield
        for module in self._modules:
            module.reshard()

    def begin_micro_batch(self, last: bool) -> None:
        """To be called before each forward pass; gradients of all ranks are added in the last."""
        for module in self._modules[-1:]:  # the root, and with it all others
            module.set_requires_gradient_sync(last or self._reshard)

    @torch.no_grad()
    def collect_gradients(self) -> list[nn.Parameter]:
        """Gives this rank's parameters their gradients and returns those that have one."""
        for name, parameter in self._spread.items():
            if parameter.grad is not None:
                self._parameters[name].grad = parameter.grad.to_local()
                parameter.grad = None
        return [p for p in self._parameters.values() if p.grad is not None]

    def gradient_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """Returns the norm of the gradients of all ranks, on each the same bits."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        mine = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if not self._spread:
            return mine
        return torch.linalg.vector_norm(self.ranks.gather_rows(mine[None]))

    @torch.no_grad()
    def _join_amaxes(self) -> None:
        """Gives delayed scaling the largest values of all ranks, so that all scale alike."""
        seen = [history.seen for history in self.model.amax_histories().values()]
        if not seen or not self._modules:
            return
        largest = torch.stack(seen)
        largest = largest.where(largest.isfinite(), torch.inf)  # NaN is the largest to no one
        self.ranks.max_(largest)
        for mine, everyones in zip(seen, largest, strict=True):
            mine.copy_(everyones)

    def _first_row(self, name: str) -> int:
        """Returns where FSDP2 begins this rank's rows: all ranks but the last ones have equal."""
        rows = len(self._spread[name])
        return min(rows, self.ranks.rank * -(-rows // self.ranks.world_size))


def _shard(model: HybridModel, ranks: Ranks, device: torch.device, reshard: bool) -> list[Any]:
    """Spreads a model's weights and returns its sharded modules, the root last."""
    # here, because importing them takes 1.3 s, and a process alone needs none of it
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (ranks.world_size,))
    modules: list[Any] = [
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard) for layer in model.layers
    ]
    modules.append(fully_shard(model, mesh=mesh, reshard_after_forward=False))
    register_fsdp_forward_method(model, "loss")
    for module in modules:
        # gradients are added: each rank's loss is divided by the targets of all ranks. NCCL can
        # do that as it sums, gloo cannot
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        if not reshard:
            module.set_reshard_after_backward(False, recurse=False)
        # the first gathering may move shards to padded memory; what is aliased later must not move
        module.unshard()
        module.reshard()
    # the compiler would not look whether weights are held, or in which recipe, where FSDP manages
    torch._dynamo.config.skip_fsdp_guards = False
    return modules
