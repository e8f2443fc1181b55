"""What the verbs do, as plain functions of plain values; the command line and the flows call them.

Imports of a stage stand inside it: each needs other heavy libraries, and a verb pays for its own.
"""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.dataset import write_json
from pipelines.progress import progress, say
from pipelines.recipe import load_function

# What a flywheel's summary keeps of each stage's result.
SUMMARY = {
    "curate": ("documents_in", "kept", "dropped", "bytes_in", "bytes_kept"),
    "train_tokenizer": ("size",),
    "tokenize": ("documents", "tokens", "bytes"),
    "mix": ("num_samples",),
    "pretrain": ("status", "parameters", "step", "tokens", "tokens_per_second", "bits_per_byte"),
    "export": ("step",),
}
PROBE_PROMPTS = ["The", "import ", "def main():\n", "This library is"]

WHEEL = "wheel.json"
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


def curate(
    recipe: str,
    out: str,
    sources: tuple[str, ...] = (),
    workers: int = 0,
    memory: str = "8GiB",
    keep_dropped: str = "all",
    sample: float = 1.0,
    verify: bool = False,
    engine: str = "local",
    master: str = "local[*]",
) -> dict[str, Any]:
    """Runs a recipe (`module:function`) over sources into a dataset; returns its manifest.

    `workers` 0 is one for each core, here and below.
    """
    from pipelines.curate import Settings
    from pipelines.curate import curate as run
    from pipelines.plan import parse_source

    size = parse_bytes(memory)
    settings = Settings(workers or cores(), size, verify, keep_dropped, sample, engine, master)
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

    say(f"tokenizer: training {kind} with {size:,} ids on up to {sample} of {', '.join(datasets)}")
    return train_vocabulary(datasets, out, kind, size, seed, parse_bytes(sample))


def tokenize(
    dataset: str,
    tokenizer: str,
    out: str,
    where: dict[str, list[str]] | None = None,
    sample: float = 1.0,
    workers: int = 0,
) -> dict[str, Any]:
    """Encodes a dataset, or the documents with a column's values, or a sample of them."""
    from mixtures.token_dataset import tokenize as run
    from pipelines.dataset import Dataset

    total = Dataset(dataset).manifest["bytes_kept"]
    chosen = where or {}
    words = ", ".join(f"{name} {' or '.join(values)}" for name, values in chosen.items())
    with progress(f"tokenize {words or dataset}", 0 if where or sample < 1 else total, "B") as bar:
        return run(dataset, tokenizer, out, workers or cores(), bar.advance, chosen, sample)


def mix(mixture: Any, parts: dict[str, str], out: str, seed: int = 0) -> dict[str, Any]:
    """Resolves a mixture (`module:function`, or the object) of token datasets into its plan."""
    from mixtures.mixture import mix as run

    chosen = load_function(mixture, "mixture")() if isinstance(mixture, str) else mixture
    say(f"mix: packing {', '.join(parts)} (the first run compiles for some seconds)")
    return run(chosen, parts, out, seed)


def pretrain(
    run: str, mixture: str, out: str, tokenizer: str = "", device: str = ""
) -> dict[str, Any]:
    """Trains a run (`module:function`) on a mixture, or goes on with it; returns a summary."""
    # with idle threads spinning, a busy machine trains ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training_hook.pretrain import pretrain as train

    vocabulary = Path(tokenizer) if tokenizer else None
    chosen = load_function(run, "run")()
    return train(chosen, Path(mixture), Path(out), vocabulary, device or None)


def export(training: str, tokenizer: str, out: str) -> dict[str, Any]:
    """Writes the last checkpoint of a training run as a Hugging Face folder."""
    from mixtures.vocabulary import load_vocabulary
    from training_hook.checkpoint import checkpoints, load_weights, read_checkpoint
    from training_hook.config import HybridConfig
    from training_hook.export import export as write

    found = checkpoints(Path(training) / "checkpoints") or checkpoints(Path(training))
    if not found:
        raise ValueError(
            f"{training} holds no finished checkpoint (step-N); wanted the folder that "
            f"`gristmill pretrain` wrote"
        )
    step, path = max(found.items())
    config = HybridConfig(**read_checkpoint(path)["run"]["model"])
    vocabulary = load_vocabulary(tokenizer)
    prompts = [ids.tolist() for ids in vocabulary.encode_batch(PROBE_PROMPTS)]
    say(f"export: step {step} to {out}")
    folder = write(load_weights(path), config, vocabulary, Path(out), prompts)
    return {"step": step, "folder": str(folder)}


def report(folder: str) -> dict[str, Any]:
    """Writes the report of a dataset or a run into its folder."""
    from flows.report import write_report

    return {"report": str(write_report(folder))}


def flywheel(
    recipe: str,
    out: str,
    sources: tuple[str, ...] = (),
    workers: int = 0,
    memory: str = "8GiB",
    call: Callable[..., dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Turns the whole wheel, stage after stage; a stage that is finished is not done again.

    Args:
        recipe: `module:function` that returns a flows.flywheel.Wheel.
        out: folder of the run; every stage has its own folder in it.
        sources: what to curate instead of the recipe's own sources.
        workers: processes of the stages that use several.
        memory: for curation.
        call: runs a stage by name; the Prefect flow runs it as a task.

    Returns:
        `stages` with seconds and results, and `folders`, as written to wheel.json.
    """
    from mixtures.mixture import Mixture
    from mixtures.mixture import Part as MixturePart

    wheel = load_function(recipe, "flywheel")()
    run = load_function(wheel.run, "run")()
    folder = Path(out)
    tokens = {part.name: str(folder / "tokens" / part.name) for part in wheel.parts}
    places = {name: str(folder / name) for name in ("dataset", "tokenizer", "mixture", "training")}
    places["model"] = str(folder / "model")
    folders: dict[str, Any] = {name: name for name in places}
    folders["tokens"] = {name: f"tokens/{name}" for name in tokens}
    summary = folder / WHEEL
    earlier = json.loads(summary.read_text("utf-8"))["stages"] if summary.exists() else []
    stages: list[dict[str, Any]] = []

    def turn(name: str, **arguments: Any) -> dict[str, Any]:
        start = time.monotonic()
        say(f"[{len(stages) + 1}/{5 + len(wheel.parts)}] {name}")
        result = (call or _call)(name, **arguments)
        stage = {"name": name, "seconds": round(time.monotonic() - start, 1)}
        stage["result"] = {key: result[key] for key in SUMMARY[name] if key in result}
        before = earlier[len(stages)] if len(stages) < len(earlier) else {}
        if before.get("result") == stage["result"]:  # it was done already: its own time counts
            stage = before
        stages.append(stage)
        write_json(summary, {"recipe": wheel.name, "stages": stages, "folders": folders})
        return result

    dataset, tokenizer = places["dataset"], places["tokenizer"]
    turn(
        "curate", recipe=wheel.recipe, out=dataset, sources=sources, workers=workers, memory=memory
    )
    size, seed = run.model.vocab_size, wheel.seed
    turn(
        "train_tokenizer", datasets=(dataset,), out=tokenizer, size=size, seed=seed, sample="24MiB"
    )
    for part in wheel.parts:
        target = tokens[part.name]
        turn(
            "tokenize",
            dataset=dataset,
            tokenizer=tokenizer,
            out=target,
            where={"kind": list(part.kinds)},
            sample=part.sample,
            workers=workers,
        )
    parts = tuple(MixturePart(p.name, p.weight, p.max_repetition) for p in wheel.parts)
    samples = run.total_steps * run.batch_size
    mixture = Mixture(wheel.name, parts, run.sequence_length, num_samples=samples)
    turn("mix", mixture=mixture, parts=tokens, out=places["mixture"], seed=seed)
    trained = turn(
        "pretrain",
        run=wheel.run,
        mixture=places["mixture"],
        out=places["training"],
        tokenizer=tokenizer,
    )
    if trained["status"] != "finished":
        raise RuntimeError("pretraining was stopped; run the same command again to continue")
    turn("export", training=places["training"], tokenizer=tokenizer, out=places["model"])
    return {"stages": stages, "folders": folders, "report": report(out)["report"]}


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    return globals()[name](**arguments)
