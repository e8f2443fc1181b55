"""What the verbs do, as plain functions of plain values; the command line and the flows call them.

Imports of a stage stand inside it: each needs other heavy libraries, and a verb pays for its own.
"""

import re
from typing import Any

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


def curate(
    recipe: str,
    out: str,
    sources: tuple[str, ...] = (),
    workers: int = 0,
    memory: str = "8GiB",
    keep_dropped: str = "all",
    sample: float = 1.0,
    verify: bool = False,
) -> dict[str, Any]:
    """Runs a recipe (`module:function`) over sources into a dataset; returns its manifest.

    `workers` 0 is one for each core.
    """
    import os

    from pipelines.curate import Settings
    from pipelines.curate import curate as run
    from pipelines.plan import parse_source
    from pipelines.recipe import load_function

    settings = Settings(
        workers or len(os.sched_getaffinity(0)), parse_bytes(memory), verify, keep_dropped, sample
    )
    chosen = load_function(recipe, "recipe")()
    return run(chosen, [parse_source(source) for source in sources], out, settings)
