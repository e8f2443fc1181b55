"""Verbs about models: tokenizer, tokenize, mask, mix, pretrain, sft, export, evaluate."""

import sys
from typing import Annotated

import typer

from flows.verbs.app import (
    AsFlow,
    Json,
    Out,
    Workers,
    app,
    errors,
    grouped,
    pair,
    print_json,
    show_result,
    stage,
)

tokenizer_app = typer.Typer(help="Train vocabularies.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what the run would take, and end: RUN is enough.")
]


def needed(verb: str, **given: str) -> None:
    """Checks options that only `--dry-run` does without.

    Raises:
        ValueError: one is not given.
    """
    if missing := [f"--{name}" for name, value in given.items() if not value]:
        raise ValueError(f"{verb}: {' and '.join(missing)} missing; --dry-run needs none of them")


def show_estimate(run: str, device: str, as_json: bool) -> None:
    """Prints what a run would take."""
    result = stage("estimate", False)(run=run, device=device)
    if as_json:
        print_json(result)
    else:
        from training_hook.command import describe

        sys.stdout.write(describe(result) + "\n")


@tokenizer_app.command(
    "train", epilog="Example: gristmill tokenizer train web --size 32000 --out tokenizer"
)
def tokenizer_train(
    datasets: Annotated[list[str], typer.Argument(help="Folders of datasets.")],
    out: Out,
    kind: Annotated[str, typer.Option(help="bpe (byte-level) or sentencepiece.")] = "bpe",
    size: Annotated[int, typer.Option(help="Ids, the 32 special ones included.")] = 32_000,
    seed: Annotated[int, typer.Option(help="Draws the sample.")] = 0,
    sample: Annotated[str, typer.Option(help="Text to train on.")] = "64MiB",
    as_json: Json = False,
) -> None:
    """Train a vocabulary on a sample of datasets."""
    with errors():
        arguments = {"kind": kind, "size": size, "seed": seed, "sample": sample}
        result = stage("train_tokenizer", False)(datasets=tuple(datasets), out=out, **arguments)
        show_result(result, as_json, f"tokenizer: {out}")


@tokenizer_app.command(
    "import", epilog="Example: gristmill tokenizer import NVIDIA-Nemotron-Nano-9B-v2 --out tok"
)
def tokenizer_import(
    folder: Annotated[str, typer.Argument(help="Hugging Face folder with a tokenizer.json.")],
    out: Out,
    end_of_document: Annotated[
        str, typer.Option(help="Token that ends every document; the eos_token if not given.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Make a vocabulary of a released model's tokenizer, to continue its training."""
    with errors():
        result = stage("import_tokenizer", False)(
            folder=folder, out=out, end_of_document=end_of_document
        )
        show_result(result, as_json, f"tokenizer: {out}")


@app.command(epilog="Example: gristmill tokenize web --tokenizer tokenizer --out tokens")
def tokenize(
    dataset: Annotated[str, typer.Argument(help="Folder of a dataset.")],
    tokenizer: Annotated[str, typer.Option(help="Folder of a tokenizer.")],
    out: Out,
    where: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=VALUE: only documents that have it; repeat for more values."),
    ] = None,
    sample: Annotated[float, typer.Option(help="Share of these documents.")] = 1.0,
    messages: Annotated[
        bool, typer.Option("--messages", help="Encode conversations, with their loss mask.")
    ] = False,
    workers: Workers = 0,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Encode a dataset into Megatron-compatible .bin and .idx files with lineage."""
    with errors():
        result = stage("tokenize", prefect)(
            dataset=dataset,
            tokenizer=tokenizer,
            out=out,
            where=grouped(where or []),
            sample=sample,
            workers=workers,
            messages=messages,
        )
        show_result(result, as_json, f"token dataset: {out}")


@app.command(epilog="Example: gristmill mask tokens web-2026-b")
def mask(
    tokens: Annotated[str, typer.Argument(help="Folder of a token dataset.")],
    names: Annotated[
        str,
        typer.Argument(
            metavar="LIST", help="File with a document id on each line, or folder of a takedown."
        ),
    ],
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Mask documents of a token dataset: mix leaves them out, streams of older mixtures blank."""
    with errors():
        result = stage("mask", prefect)(tokens=tokens, names=names)
        show_result(result, as_json, f"masked in {tokens}: {result['documents']} documents")


@app.command(epilog="Example: gristmill mix my.py:mixture --part web=tokens --out mixture")
def mix(
    mixture: Annotated[str, typer.Argument(help="module:function or file.py:function.")],
    part: Annotated[list[str], typer.Option(help="NAME=FOLDER of a token dataset.")],
    out: Out,
    seed: Annotated[int, typer.Option(help="Of every order.")] = 0,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Resolve a mixture: tokens, epochs and repetition of each part, before anything is spent."""
    with errors():
        parts = dict(pair("--part", text) for text in part)
        result = stage("mix", prefect)(mixture=mixture, parts=parts, out=out, seed=seed)
        show_result(result, as_json, f"mixture: {out}")


@app.command(
    epilog="Example: gristmill pretrain flows.runs.hybrid_tiny:run --mixture mixture --out training"
)
def pretrain(
    run: Annotated[str, typer.Argument(help="module:function or file.py:function.")],
    mixture: Annotated[str, typer.Option(help="Folder of a mixture.")] = "",
    out: Out = "",
    start: Annotated[
        str,
        typer.Option(
            "--from", help="Checkpoint, training folder or Hugging Face folder to start from."
        ),
    ] = "",
    tokenizer: Annotated[str, typer.Option(help="Folder of the tokenizer, to be checked.")] = "",
    device: Annotated[str, typer.Option(help="cuda or cpu; a GPU if there is one.")] = "",
    dry_run: DryRun = False,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Train the hybrid on a mixture; the same command goes on where it stopped."""
    with errors():
        if dry_run:
            show_estimate(run, device, as_json)
            return
        needed("pretrain", mixture=mixture, out=out)
        result = stage("pretrain", prefect)(
            run=run, mixture=mixture, out=out, tokenizer=tokenizer, device=device, start=start
        )
        show_result(result, as_json, f"training: {out}")


@app.command(epilog="Example: gristmill export training --tokenizer tokenizer --out model")
def export(
    training: Annotated[str, typer.Argument(help="Folder that pretrain wrote.")],
    tokenizer: Annotated[str, typer.Option(help="Folder of the tokenizer.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Write the last checkpoint as a Hugging Face folder."""
    with errors():
        result = stage("export", False)(training=training, tokenizer=tokenizer, out=out)
        show_result(result, as_json, f"model: {out}")


@app.command(
    epilog="Example: gristmill sft flows.runs.sft_tiny:run --mixture chat --from training --out sft"
)
def sft(
    run: Annotated[str, typer.Argument(help="module:function or file.py:function.")],
    mixture: Annotated[str, typer.Option(help="Folder of a mixture with conversations.")] = "",
    start: Annotated[str, typer.Option("--from", help="As pretrain's.")] = "",
    out: Out = "",
    tokenizer: Annotated[str, typer.Option(help="Folder of the tokenizer, to be checked.")] = "",
    device: Annotated[str, typer.Option(help="cuda or cpu; a GPU if there is one.")] = "",
    dry_run: DryRun = False,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Fine-tune a checkpoint on conversations; the same command goes on where it stopped."""
    with errors():
        if dry_run:
            show_estimate(run, device, as_json)
            return
        needed("sft", mixture=mixture, out=out, **{"from": start})
        result = stage("sft", prefect)(
            run=run, mixture=mixture, start=start, out=out, tokenizer=tokenizer, device=device
        )
        show_result(result, as_json, f"training: {out}")


@app.command(epilog="Example: gristmill evaluate sft --tokenizer tokenizer --chat --out sft.json")
def evaluate(
    training: Annotated[str, typer.Argument(help="Checkpoint or training folder.")],
    tokenizer: Annotated[str, typer.Option(help="Folder of the tokenizer.")],
    out: Annotated[str, typer.Option(help="File to write the result to, JSON.")],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="phonebook, needle (both with sizes, such as phonebook:8,16), arithmetic, "
            "bits_per_byte; repeat for more. Held-out problems alone, where none is given."
        ),
    ] = None,
    mixture: Annotated[
        str, typer.Option(help="Whose held-out documents needle and bits_per_byte take.")
    ] = "",
    by: Annotated[
        str, typer.Option(help="Column for bits_per_byte, such as source, language or domain.")
    ] = "",
    dataset: Annotated[
        list[str] | None, typer.Option(help="Curated dataset that has the column; repeat for more.")
    ] = None,
    lm_eval: Annotated[
        str, typer.Option(help="Folder for the items as tasks of lm-evaluation-harness.")
    ] = "",
    problems: Annotated[int, typer.Option(help="Held-out problems of each family.")] = 200,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask through the chat template, after fine-tuning.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask a model held-out problems and tasks: exact answers with intervals, bits per byte."""
    with errors():
        given = {"training": training, "tokenizer": tokenizer, "out": out}
        given |= {"number": problems, "chat": chat}
        if task:
            chosen = {"tasks": tuple(task), "mixture": mixture, "by": by}
            chosen |= {"datasets": tuple(dataset or ()), "lm_eval": lm_eval}
            result = stage("evaluate_tasks", False)(**given, **chosen)
        elif mixture or by or dataset or lm_eval:
            raise ValueError(
                "evaluate: --mixture, --by, --dataset and --lm-eval belong to a --task"
            )
        else:
            result = stage("evaluate", False)(**given)
        show_result(result, as_json, f"answers: {out}")
