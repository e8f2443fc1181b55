"""What a command may use: memory as it is written, processors and their threads."""

import os
import re

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_bytes(text: str) -> int:
    """Reads a size such as 8GiB or 512MiB.

    Raises:
        ValueError: the text is not a number with a binary unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]iB|B)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no size; wanted a number and a unit, for example 8GiB")
    return int(float(match[1]) * UNITS[match[2]])


def cores() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def let_threads_sleep() -> None:
    """Lets torch's threads sleep when they have nothing to do; call it before torch is loaded.

    Spinning, they take the processors from one another: training on a busy machine is ten times
    slower, and a product of matrices fifty times.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
