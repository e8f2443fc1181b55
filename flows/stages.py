"""What the verbs do, as plain functions of plain values; the command line and the flows call them.

Imports of a stage stand inside it: each needs other heavy libraries, and a verb pays for its own.
"""

import importlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.resources import cores, let_threads_sleep, parse_bytes
from pipelines.dataset import write_json
from pipelines.load import load
from pipelines.progress import progress, say

PROBE_PROMPTS = ["The", "import ", "def main():\n", "Question: What is 2 + 2?\nReasoning:"]


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
    against: str = "",
    takedown: tuple[str, ...] = (),
    arguments: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Runs a recipe (`module:function`) over sources into a dataset; returns its manifest.

    `workers` 0 is one for each core, here and below. `arguments` are the recipe function's.
    """
    from pipelines.curate import Settings
    from pipelines.curate import curate as run
    from pipelines.plan import parse_source
    from pipelines.recipe import Recipe

    size = parse_bytes(memory)
    settings = Settings(
        workers or cores(),
        size,
        verify,
        keep_dropped,
        sample,
        engine,
        master,
        against,
        tuple(takedown),
    )
    chosen = load(recipe, "recipe", Recipe, arguments)
    return run(chosen, [parse_source(source) for source in sources], out, settings)


def compact(datasets: tuple[str, ...], out: str) -> dict[str, Any]:
    """Writes the snapshots of an index, in order, as one dataset; returns its manifest."""
    from pipelines.compact import compact as run

    return run(datasets, out)


def takedown(
    recipe: str,
    names: str,
    against: str,
    out: str,
    copies: bool = True,
    workers: int = 0,
    memory: str = "8GiB",
    arguments: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Takes the documents of a list out of the snapshots of an index; returns what changes."""
    from pipelines.curate import Settings
    from pipelines.recipe import Recipe
    from pipelines.takedown import takedown as run

    settings = Settings(workers or cores(), parse_bytes(memory), against=against)
    chosen = load(recipe, "recipe", Recipe, arguments)
    return run(chosen, names, out, settings, copies)


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
    messages: bool = False,
) -> dict[str, Any]:
    """Encodes a dataset, or the documents with a column's values, or a sample of them.

    With `messages` conversations are encoded, with a mask of what the assistant wrote.
    """
    from mixtures.token_dataset import tokenize as run
    from pipelines.dataset import Dataset

    total = Dataset(dataset).manifest["bytes_kept"]
    chosen = where or {}
    words = ", ".join(f"{name} {' or '.join(values)}" for name, values in chosen.items())
    with progress(f"tokenize {words or dataset}", 0 if where or sample < 1 else total, "B") as bar:
        return run(
            dataset, tokenizer, out, workers or cores(), bar.advance, chosen, sample, messages
        )


def mask(tokens: str, names: str) -> dict[str, Any]:
    """Masks the documents of a list in a token dataset; returns what is masked now.

    A list of ids has to be there as a whole; of a takedown, what the token dataset has.
    """
    from mixtures.masked import mask as run
    from pipelines.takedown_list import is_takedown, read_takedown

    listed = read_takedown(names)
    if listed.urls and not is_takedown(names):
        raise ValueError(
            f"mask: {names} lists {len(listed.urls)} URLs, and token datasets know ids only. Give "
            f"the folder that `gristmill takedown` wrote for that list"
        )
    return run(tokens, list(listed.ids), strict=not is_takedown(names))


def mix(mixture: Any, parts: dict[str, str], out: str, seed: int = 0) -> dict[str, Any]:
    """Resolves a mixture (`module:function`, or the object) of token datasets into its plan."""
    from mixtures.mixture import Mixture
    from mixtures.mixture import mix as run

    chosen = load(mixture, "mixture", Mixture) if isinstance(mixture, str) else mixture
    say(f"mix: packing {', '.join(parts)} (the first run compiles for some seconds)")
    return run(chosen, parts, out, seed)


def classify(dataset: str, labels: str, out: str, seed: int = 0) -> dict[str, Any]:
    """Labels a dataset by its paths (`module:name`) and trains a quality classifier on it."""
    from filters.path_labels import classify as run

    module, _, name = labels.partition(":")
    say(f"classify: labelling {dataset} and training fastText")
    return run(dataset, getattr(importlib.import_module(module), name), out, seed)


def train_classifier(
    out: str,
    documents: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    negative: tuple[str, ...] = (),
    reference: tuple[str, ...] = (),
    columns: dict[str, Any] | None = None,
    newline: str = "space",
    seed: int = 0,
    holdout: float = 0.2,
    sample: str = "64MiB",
) -> dict[str, Any]:
    """Trains a quality classifier on labelled documents; returns its manifest."""
    from filters.labelled import Columns
    from filters.quality_training import train_classifier as run

    return run(
        out,
        documents,
        positive,
        negative,
        reference,
        columns=Columns(**(columns or {})),
        newline=newline,
        seed=seed,
        holdout=holdout,
        max_bytes=parse_bytes(sample),
    )


def evaluate_classifier(
    model: str, documents: tuple[str, ...], columns: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Scores a quality classifier on labelled documents."""
    from filters.labelled import Columns
    from filters.quality_training import evaluate_classifier as run

    return run(model, documents, columns=Columns(**(columns or {})))


def problem_documents(
    out: str, num_documents: int, seed: int = 0, wrong_share: float = 0.1
) -> dict[str, Any]:
    """Writes solved problems as JSON Lines, a share of them wrong, as a source for `curate`."""
    path = Path(out)
    if not path.exists():
        from synth.problem_documents import write_problem_documents

        say(f"problems: writing {num_documents:,} solved problems, {wrong_share:.0%} of them wrong")
        write_problem_documents(path, num_documents, seed, wrong_share)
    return {"documents": num_documents, "wrong_share": wrong_share, "bytes": path.stat().st_size}


def import_tokenizer(folder: str, out: str, end_of_document: str = "") -> dict[str, Any]:
    """Makes a vocabulary of a Hugging Face folder's tokenizer; returns its manifest."""
    from mixtures.vocabulary_import import import_vocabulary

    return import_vocabulary(folder, out, end_of_document)


def estimate(run: str, device: str = "") -> dict[str, Any]:
    """Returns what a run (`module:function`) would take: parameters, tokens, memory, time."""
    let_threads_sleep()
    from training_hook.estimate import estimate as run_estimate
    from training_hook.run import PretrainRun

    return run_estimate(load(run, "run", PretrainRun), device or None)


def pretrain(
    run: str, mixture: str, out: str, tokenizer: str = "", device: str = "", start: str = ""
) -> dict[str, Any]:
    """Trains a run (`module:function`) on a mixture, or goes on with it; returns a summary.

    `start` is a checkpoint, a training folder or a Hugging Face folder; without it weights are
    drawn.
    """
    let_threads_sleep()
    from training_hook.pretrain import pretrain as train
    from training_hook.run import PretrainRun

    vocabulary = Path(tokenizer) if tokenizer else None
    chosen = load(run, "run", PretrainRun)
    begin = Path(start) if start else None
    return train(chosen, Path(mixture), Path(out), vocabulary, device or None, begin)


def sft(
    run: str, mixture: str, start: str, out: str, tokenizer: str = "", device: str = ""
) -> dict[str, Any]:
    """Fine-tunes a checkpoint, a run's last one or a Hugging Face folder on conversations."""
    let_threads_sleep()
    from training_hook.sft import sft as train
    from training_hook.sft_run import SftRun

    vocabulary = Path(tokenizer) if tokenizer else None
    chosen = load(run, "run", SftRun)
    return train(chosen, Path(mixture), Path(start), Path(out), vocabulary, device or None)


def export(training: str, tokenizer: str, out: str) -> dict[str, Any]:
    """Writes the last checkpoint of a training run as a Hugging Face folder."""
    from mixtures.vocabulary import load_vocabulary
    from training_hook.checkpoint import last_checkpoint, load_weights, read_checkpoint
    from training_hook.config import HybridConfig
    from training_hook.export import export as write

    path = last_checkpoint(Path(training))
    manifest = read_checkpoint(path)
    step, config = manifest["step"], HybridConfig(**manifest["run"]["model"])
    vocabulary = load_vocabulary(tokenizer)
    if vocabulary.fingerprint != manifest["mixture"]["vocabulary"]:
        raise ValueError(
            f"export: {path} was trained on the vocabulary {manifest['mixture']['vocabulary'][:12]}"
            f", {tokenizer} is {vocabulary.fingerprint[:12]}. Give the folder of the vocabulary "
            "that its mixture was tokenized with"
        )
    origin = {
        "run": manifest["run"]["name"],
        "run_fingerprint": manifest["run_fingerprint"],
        "step": step,
        "mixture": manifest["mixture"]["fingerprint"],
    } | ({"start": manifest["start"]} if "start" in manifest else {})
    prompts = [ids.tolist() for ids in vocabulary.encode_batch(PROBE_PROMPTS)]
    say(f"export: step {step} to {out}")
    weights = load_weights(path)
    folder = write(weights, config, vocabulary, Path(out), prompts, origin=origin)
    return {"step": step, "folder": str(folder)}


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8101,
    dtype: str = "",
    max_model_len: int = 2048,
) -> None:
    """Serves an exported model with vLLM until it is interrupted."""
    from synth.server import ServerSettings
    from synth.server import serve as run

    run(Path(model), ServerSettings(host=host, port=port, dtype=dtype, max_model_len=max_model_len))


def synth(recipe: str, model: str, out: str, concurrency: int = 64) -> dict[str, Any]:
    """Generates and verifies reasoning traces into a dataset; returns its manifest.

    `model` is the URL of a server or an exported model, which is then served meanwhile.
    """
    from synth.engine import ClientSettings
    from synth.recipe import SynthRecipe
    from synth.synthesize import synthesize

    chosen = load(recipe, "recipe", SynthRecipe)
    return synthesize(chosen, model, out, ClientSettings(concurrency))


def evaluate(
    training: str, tokenizer: str, out: str, number: int = 200, chat: bool = False, seed: int = 7
) -> dict[str, Any]:
    """Asks a model held-out problems and writes the share of right answers as JSON to `out`."""
    from training_hook.evaluation.answers import evaluate_answers

    say(f"evaluate: asking {training} held-out problems")
    result = evaluate_answers(training, tokenizer, number, chat, seed)
    write_json(Path(out), result)
    return result


def evaluate_tasks(
    training: str,
    tokenizer: str,
    out: str,
    tasks: tuple[str, ...],
    mixture: str = "",
    by: str = "",
    datasets: tuple[str, ...] = (),
    number: int = 200,
    chat: bool = False,
    lm_eval: str = "",
) -> dict[str, Any]:
    """Asks a model tasks by name and writes the results as JSON to `out`."""
    from training_hook.evaluation.tasks import Settings, describe
    from training_hook.evaluation.tasks import evaluate_tasks as run

    settings = Settings(mixture, by, tuple(datasets), number, chat, lm_eval)
    result = run(training, tokenizer, tasks, settings)
    write_json(Path(out), result)
    say(describe(result))
    return result


def publish(
    dataset: str,
    repo: str,
    private: bool = True,
    licence: str = "",
    ledger: bool = True,
    dropped: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Publishes a dataset with a card on the Hub; the token is the environment's HF_TOKEN."""
    from flows.publish import publish as run

    return run(
        dataset,
        repo,
        private=private,
        licence=licence,
        ledger=ledger,
        dropped=dropped,
        replace=replace,
        dry_run=dry_run,
    )


def report(folder: str) -> dict[str, Any]:
    """Writes the report of a dataset or a run into its folder."""
    from flows.report import write_report

    return {"report": str(write_report(folder))}


def live_report(folder: str, port: int = 0, ready: Callable[[str], None] = say) -> None:
    """Serves the report of a training run, which follows it, until it is interrupted.

    `ready` is called with the address.
    """
    from flows.live_report import open_server

    with open_server(folder, port) as server:
        ready(f"http://{server.server_address[0]}:{server.server_address[1]}/")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
