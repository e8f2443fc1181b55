"""Deterministic algorithms: the same run on the same GPU gives the same bits.

Our own kernels add in a fixed order anyway; what is left are PyTorch's operators that add by
atomics, cuBLAS, which may split a sum otherwise from call to call, and the compiler, which measures
on the device which of its kernels is fastest, and those add in other orders. Between machines,
versions or GPU models nothing is promised.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    """Lets PyTorch use only deterministic algorithms inside, if `on`; one that has none raises.

    cuBLAS reads its setting when a process first uses it, so the block has to come before that.
    """
    if not on:
        yield
        return
    from torch._inductor import config as inductor  # only here: it loads the compiler

    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # new tensors are written before they are read here, so filling them would only cost time
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with inductor.patch(deterministic=True):
            yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled
