"""A share of right answers, with the interval that the number of questions allows."""

import math
from typing import Any

Z = 1.959964
"""Quantile of the normal distribution for 95%."""


def share(right: int, asked: int) -> dict[str, Any]:
    """Returns right, asked, accuracy and Wilson's 95% score interval.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    found = right / asked
    middle = (found + Z * Z / (2 * asked)) / (1 + Z * Z / asked)
    spread = math.sqrt(found * (1 - found) / asked + (Z / (2 * asked)) ** 2)
    half = Z / (1 + Z * Z / asked) * spread
    return {
        "right": right,
        "asked": asked,
        "accuracy": found,
        "interval": [max(0.0, middle - half), min(1.0, middle + half)],  # but for rounding, inside
    }
