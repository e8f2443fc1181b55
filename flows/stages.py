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


def train_tokenizer(
    datasets: tuple[str, ...],
    out: str,
    kind: str = "bpe",
    size: int = 32_000,
    seed: int = 0,
    sample: str = "64MiB",
) -> dict[str, Any]:
    """Trains a vocabulary on a sample of datasets; returns its manifest."""
    from mixtures.vocabulary_training import train_vocabulary

    say(f"tokenizer: {kind}, {size:,} ids, on up to {sample} of {', '.join(datasets)}")
    return train_vocabulary(datasets, out, kind, size, seed, parse_bytes(sample))


def tokenize(
    dataset: str, tokenizer: str, out: str, kinds: tuple[str, ...] = (), workers: int = 0
) -> dict[str, Any]:
    """Encodes a dataset, or its documents of some kinds, into a token dataset."""
    from mixtures.token_dataset import tokenize as run
    from pipelines.dataset import Dataset

    total = Dataset(dataset).manifest["bytes_kept"]
    with progress(f"tokenize {dataset}", total, "B") as bar:
        return run(dataset, tokenizer, out, kinds, workers or cores(), bar.advance)


def pretrain(
    run: str, mixture: str, out: str, tokenizer: str = "", device: str = ""
) -> dict[str, Any]:
    """Trains a run (`module:function`) on a mixture, or goes on with it; returns a summary."""
    from training_hook.pretrain import pretrain as train

    chosen = load_function(run, "run")()
    vocabulary = Path(tokenizer) if tokenizer else None
    return train(chosen, Path(mixture), Path(out), vocabulary, device or None)


def export(training: str, tokenizer: str, out: str) -> dict[str, Any]:
    """Writes the last checkpoint of a training run as a Hugging Face folder."""


def report(folder: str) -> dict[str, Any]:
    """Writes the report of a dataset or a run into its folder."""
    from flows.report import write_report

    return {"report": str(write_report(folder))}
