"""Products that are added up in FP32 where they are made, instead of by a pass of their own.

A weight's gradient over the micro batches of a step is a sum of products. Written in BF16, cast and
added, each moves 20 bytes a weight and is rounded; the tensor cores' sums are FP32 already, and
added to what is there as they are written they move 8.
"""

import torch
from torch import Tensor


def multiply(a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
    """Writes a b, or adds it.

    Args:
        a: (rows, inner).
        b: (inner, columns), of the dtype of a.
        out: (rows, columns), contiguous, of the dtype of a, or FP32 where that is a narrower one.
        add: to what `out` holds.
    """
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, beta=float(add), out=out)
    elif not a.is_cuda:
        out.copy_(out + a @ b if add else a @ b)
    elif add:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


@torch.library.custom_op("gristmill::add_product", mutates_args=("total",))
def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a^T b to `total`; the compiler takes it whole and copies nothing.

    Args:
        total: (columns of a, columns of b), contiguous, see `multiply`.
        a: (inner, columns).
        b: (inner, columns).
    """
    multiply(a.T, b, total, add=True)


@add_product.register_fake
def _(total: Tensor, a: Tensor, b: Tensor) -> None:
    return None
