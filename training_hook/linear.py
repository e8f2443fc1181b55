"""The one place where matrix products with weights are made, so that a precision is one choice.

A linear layer takes (tokens, in_features) and gives (tokens, out_features): two dimensions, because
that is what scaled FP8 products want. Weights are FP32 masters; "plain" multiplies in the dtype of
the input. All recipes have the same parameter, so a checkpoint knows none.

A product needs its weight cast, and a step of many micro batches needs the same casts many times.
Between `hold` and `release` a layer uses those that `hold` made: 2 bytes a weight that stay
allocated (BF16, or FP8 as it is and transposed), where a cast at each call reads 4 and writes 2 for
each micro batch. They are in no checkpoint, and at the same addresses in each step, so that nothing
compiles again. Outside of `hold` every call casts: evaluation and decoding never see a cast that is
older than the weight. Either way the numbers are the same.

Where one process has the whole weight, `hold` can also let a product in a narrower dtype add its
gradient to the weight's as it is made (`products`), without rounding it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_hook.amax_history import AmaxHistory
from training_hook.fp8 import cast_weight, fp8_linear
from training_hook.fp8_scaling import NOT_DELAYED, Cast, Delayed
from training_hook.linear_recipe import MULTIPLES, check_recipe
from training_hook.products import add_product


class Linear(nn.Module):
    """A product with a weight of (out_features, in_features) in the dtype of the input, no bias."""

    held_copy: Tensor | None
    total: Tensor | None
    """The weight's gradient, if products add to it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.held, self.total = False, None
        self.register_buffer("held_copy", None, persistent=False)

    def reset_parameters(self, spread: float, generator: torch.Generator) -> None:
        """Draws the weight from normal(0, spread)."""
        draw_normal(self.weight, spread, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in_features) to (tokens, out_features)."""
        if self.held and self.total is not None and torch.is_grad_enabled():
            held = self.held_copy, self.total
            return _Adding.apply(x, self.weight, *held)  # pyright: ignore[reportReturnType]
        return F.linear(x, self._in_dtype(self.weight, x.dtype))

    def forward_parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps as `forward`; columns that different products make are not joined."""
        return (self(x),)

    @torch.no_grad()
    def hold(self, dtype: torch.dtype, adds: bool = False) -> None:
        """Casts the weight to a dtype for all products until `release`.

        Inputs must have that dtype, and the weight must not change meanwhile.

        Args:
            dtype: of the products.
            adds: lets backward passes add to the weight's `grad`, which is there from now on, past
                autograd and whatever waits for a gradient there.
        """
        self._hold_copy(self.weight, dtype)
        if adds and self.held_copy is not None and self.weight.requires_grad:
            if self.weight.grad is None:
                self.weight.grad = torch.zeros_like(self.weight)
            self.total = self.weight.grad
        self.held = True

    def release(self) -> None:
        """Lets each product cast the weight again; the memory stays for the next `hold`."""
        self.held, self.total = False, None

    def _hold_copy(self, weight: Tensor, dtype: torch.dtype) -> None:
        if weight.dtype == dtype:
            self.held_copy = None
        elif self.held_copy is None or self.held_copy.shape != weight.shape:
            self.held_copy = weight.to(dtype)
        else:
            self.held_copy.copy_(weight)

    def _in_dtype(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the weight, or the part of it that `held_copy` has, in a dtype."""
        if self.held and self.held_copy is not None:
            return _StandIn.apply(weight, self.held_copy)  # pyright: ignore[reportReturnType]
        return weight.to(dtype)


class FP8Linear(Linear):
    """A product that runs in FP8 while it is trained, and in the dtype of the input otherwise.

    Without gradients (evaluation, decoding) it is a `Linear`: what is scored is what is exported,
    and any number of tokens may come.

    Args:
        in_features: columns of the input.
        out_features: columns of the output.
        recipe: see `make_linear`.
        plain_rows: rows at the end of the weight whose product is in the dtype of the input always.
    """

    def __init__(
        self, in_features: int, out_features: int, recipe: str, plain_rows: int = 0
    ) -> None:
        super().__init__(in_features, out_features)
        self.recipe, self.plain_rows = recipe, plain_rows
        self.low_precision = True
        """False makes it a `Linear` in training, too."""
        for name in Cast._fields:
            self.register_buffer(f"held_{name}", None, persistent=False)
        self.history = AmaxHistory() if recipe == "fp8_delayed" else None

    @property
    def in_fp8(self) -> bool:
        """Whether `forward` runs in FP8 here and now."""
        return self.low_precision and torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in_features) to (tokens, out_features)."""
        parts = self.forward_parts(x)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def forward_parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps as `forward`; the columns of plain rows are apart where the others run in FP8."""
        if not self.in_fp8:
            return (super().forward(x),)
        if not self.plain_rows:
            return (fp8_linear(x, self.weight, self.cast(), self.recipe, self.delayed()),)
        low, plain = self._parts()
        y = fp8_linear(x, low, self.cast(), self.recipe, self.delayed())
        return y, F.linear(x, self._in_dtype(plain, x.dtype))

    def cast(self) -> Cast:
        """Returns the cast of the rows that run in FP8: the one held, or one made now."""
        held = [getattr(self, f"held_{name}") for name in Cast._fields]
        if self.held and held[0] is not None:
            return Cast(*held)
        return cast_weight(self._parts()[0], self.recipe)

    def delayed(self) -> Delayed:
        """Returns what delayed scaling expects: nothing in another recipe, or outside of a hold."""
        if self.history is None or not self.held:
            return NOT_DELAYED
        return self.history.delayed()

    @torch.no_grad()
    def hold(self, dtype: torch.dtype, adds: bool = False) -> None:
        """Casts the weight to what its products want until `release`; see `Linear.hold`.

        FP8 products come out in FP32, but add to nothing.
        """
        if not self.low_precision:
            for name in Cast._fields:
                setattr(self, f"held_{name}", None)
            super().hold(dtype, adds)
            return
        low, plain = self._parts()
        for name, new in cast_weight(low, self.recipe)._asdict().items():
            old = getattr(self, f"held_{name}")
            if old is None:
                setattr(self, f"held_{name}", new)
            else:
                old.copy_(new)
        self._hold_copy(plain, dtype)
        if self.history is not None:
            self.history.begin()
        self.held = True

    def release(self) -> None:
        """Lets each product cast the weight again; ends the step of a history."""
        super().release()
        if self.history is not None:
            self.history.end()

    def _parts(self) -> tuple[Tensor, Tensor]:
        """Returns the rows of the weight that run in FP8, and the others.

        One split has one concatenation for its gradient, where two slices fill up and add.
        """
        low, plain = self.weight.split([len(self.weight) - self.plain_rows, self.plain_rows])
        return low, plain


class _StandIn(torch.autograd.Function):
    """A copy of a weight in another dtype that passes its gradient on as casting would."""

    @staticmethod
    def forward(ctx, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad_outputs[0].to(ctx.dtype), None


class _Adding(torch.autograd.Function):
    """A product with a copy of a weight, whose backward pass adds to the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, copy: Tensor, total: Tensor) -> Tensor:
        ctx.save_for_backward(x, copy, total)
        return x @ copy.T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,), (x, copy, total) = grad_outputs, ctx.saved_tensors
        add_product(total, dy, x)
        return dy @ copy, None, None, None


def draw_normal(weight: Tensor, spread: float, generator: torch.Generator) -> None:
    """Fills a weight from normal(0, spread), drawn in FP32 on the generator's device."""
    values = torch.empty(weight.shape, device=generator.device, dtype=torch.float32)
    weight.copy_(values.normal_(0, spread, generator=generator))


def make_linear(in_features: int, out_features: int, recipe: str, plain_rows: int = 0) -> Linear:
    """Returns a linear layer without values for its weight.

    Args:
        in_features: columns of the input.
        out_features: columns of the output.
        recipe: "plain" multiplies in the dtype of the input (FP32 or BF16), "fp8_tensor",
            "fp8_tensor_e4m3", "fp8_delayed" and "fp8_block" as `fp8` says.
        plain_rows: rows at the end of the weight that may stay out of FP8, and do so where
            out_features does not divide into the recipe's blocks.

    Raises:
        ValueError: the recipe is not known, or it cannot have these sizes.
    """
    check_recipe(recipe)
    if recipe == "plain":
        return Linear(in_features, out_features)
    multiple = MULTIPLES[recipe]
    if out_features % multiple == 0:
        plain_rows = 0
    low_rows = out_features - plain_rows
    if in_features % multiple or low_rows % multiple or low_rows == 0:
        raise ValueError(
            f"make_linear: {recipe} got in_features {in_features} and out_features {low_rows}; "
            f"wanted multiples of {multiple}. Change the model's sizes (a Mamba layer's in_proj "
            "has 2 * heads * head_dim + 2 * groups * state_size beside its heads), or take "
            "another recipe"
        )
    return FP8Linear(in_features, out_features, recipe, plain_rows)
