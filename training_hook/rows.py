"""What a rank holds of a tensor: a block of its rows, or all of it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor from some row on."""

    local: Tensor
    """The rows themselves; none where a tensor has fewer rows than there are ranks."""
    first: int
    """Index of the first of them."""
    shape: tuple[int, ...]
    """Of the whole tensor."""

    @property
    def offsets(self) -> list[int]:
        """Where the block begins in each dimension."""
        return [self.first if axis == 0 else 0 for axis in range(len(self.shape))]


def whole(tensor: Tensor) -> Rows:
    """Returns all rows of a tensor."""
    return Rows(tensor.detach(), 0, tuple(tensor.shape))
