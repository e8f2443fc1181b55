"""The command line. Each verb calls the plain function of the same name in flows.stages.

Results go to stdout, everything else to stderr. Exit code 0 done, 1 failed, 2 wrong usage.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="gristmill",
    help="Raw text to training mixtures to models, with proof of what happened to every document.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Out = Annotated[str, typer.Option(help="Folder to write to.")]
AsFlow = Annotated[bool, typer.Option("--prefect", help="Run as a Prefect flow.")]
Workers = Annotated[int, typer.Option(help="Processes; 0 is one for each core.")]


@app.command(
    epilog="Example: gristmill curate flows.recipes.web:english_web --source crawl/ --out web"
)
def curate(
    recipe: Annotated[str, typer.Argument(help="module:function or file.py:function.")],
    out: Out,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="File, folder, glob, fsspec URL or Hugging Face dataset; NAME=PATH names it. "
            "May be given several times. Without it the recipe's own sources are read."
        ),
    ] = None,
    workers: Workers = 0,
    memory: Annotated[str, typer.Option(help="For the whole run, for example 8GiB.")] = "8GiB",
    keep_dropped: Annotated[
        str, typer.Option(help="Texts of dropped documents: all, sample (1%) or origin (none).")
    ] = "all",
    sample: Annotated[float, typer.Option(help="Share of the documents to look at.")] = 1.0,
    verify: Annotated[bool, typer.Option("--verify", help="Hash the inputs again.")] = False,
    engine: Annotated[str, typer.Option(help="local or spark; the result is the same.")] = "local",
    master: Annotated[
        str, typer.Option(help="Where Spark runs: local[2], spark://host:7077, yarn, ...")
    ] = "local[*]",
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Run a recipe over sources into a dataset."""
    with _errors():
        result = _stage("curate", prefect)(
            recipe=recipe,
            out=out,
            sources=tuple(source or ()),
            workers=workers,
            memory=memory,
            keep_dropped=keep_dropped,
            sample=sample,
            verify=verify,
            engine=engine,
            master=master,
        )
        if as_json:
            _print_json(result)
        else:
            from flows.console import print_manifest

            print_manifest(result, out)


@app.command(epilog="Example: gristmill why web 8c6b3f")
def why(
    dataset: Annotated[str, typer.Argument(help="Folder of a dataset.")],
    document: Annotated[str, typer.Argument(help="Id of a document, or its first digits.")],
    as_json: Json = False,
) -> None:
    """Explain what became of a document, rule by rule."""
    with _errors():
        from pipelines.dataset import Dataset
        from pipelines.explain import why as explain

        result = explain(Dataset(dataset), document)
        if as_json:
            _print_json(result)
        else:
            from flows.console import print_why

            print_why(result)


@app.command(epilog="Example: gristmill show web --rule too_few_words")
def show(
    dataset: Annotated[str, typer.Argument(help="Folder of a dataset.")],
    rule: Annotated[str, typer.Option(help="Name of a rule, as the report lists them.")],
    number: Annotated[int, typer.Option("-n", help="How many documents.")] = 5,
    as_json: Json = False,
) -> None:
    """Show documents that a rule dropped."""
    with _errors():
        from pipelines.dataset import Dataset
        from pipelines.explain import examples

        result = examples(Dataset(dataset), rule, number)
        if as_json:
            _print_json(result)
        else:
            from flows.console import print_examples

            print_examples(result, rule)


tokenizer_app = typer.Typer(help="Train vocabularies.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")


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
    with _errors():
        arguments = {"kind": kind, "size": size, "seed": seed, "sample": sample}
        result = _stage("train_tokenizer", False)(datasets=tuple(datasets), out=out, **arguments)
        _show(result, as_json, f"tokenizer: {out}")


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
    workers: Workers = 0,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Encode a dataset into Megatron-compatible .bin and .idx files with lineage."""
    with _errors():
        result = _stage("tokenize", prefect)(
            dataset=dataset,
            tokenizer=tokenizer,
            out=out,
            where=_grouped(where or []),
            sample=sample,
            workers=workers,
        )
        _show(result, as_json, f"token dataset: {out}")


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
    with _errors():
        parts = dict(_pair("--part", text) for text in part)
        result = _stage("mix", prefect)(mixture=mixture, parts=parts, out=out, seed=seed)
        _show(result, as_json, f"mixture: {out}")


@app.command(
    epilog="Example: gristmill pretrain flows.runs.hybrid_tiny:run --mixture mixture --out training"
)
def pretrain(
    run: Annotated[str, typer.Argument(help="module:function or file.py:function.")],
    mixture: Annotated[str, typer.Option(help="Folder of a mixture.")],
    out: Out,
    tokenizer: Annotated[str, typer.Option(help="Folder of the tokenizer, to be checked.")] = "",
    device: Annotated[str, typer.Option(help="cuda or cpu; a GPU if there is one.")] = "",
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Train the hybrid on a mixture; the same command goes on where it stopped."""
    with _errors():
        result = _stage("pretrain", prefect)(
            run=run, mixture=mixture, out=out, tokenizer=tokenizer, device=device
        )
        _show(result, as_json, f"training: {out}")


@app.command(epilog="Example: gristmill export training --tokenizer tokenizer --out model")
def export(
    training: Annotated[str, typer.Argument(help="Folder that pretrain wrote.")],
    tokenizer: Annotated[str, typer.Option(help="Folder of the tokenizer.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Write the last checkpoint as a Hugging Face folder."""
    with _errors():
        result = _stage("export", False)(training=training, tokenizer=tokenizer, out=out)
        _show(result, as_json, f"model: {out}")


@app.command(epilog="Example: gristmill report web --open")
def report(
    folder: Annotated[str, typer.Argument(help="Folder of a dataset or of a flywheel run.")],
    open_: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write a self-contained HTML page about a dataset or a run."""
    with _errors():
        result = _stage("report", False)(folder=folder)
        if open_:
            import webbrowser
            from pathlib import Path

            webbrowser.open(Path(result["report"]).resolve().as_uri())
        _show(result, as_json, f"report: {result['report']}")


@app.command(epilog="Example: gristmill flywheel flows.recipes.packages:wheel --out runs/first")
def flywheel(
    recipe: Annotated[str, typer.Argument(help="module:function or file.py:function.")],
    out: Out,
    source: Annotated[
        list[str] | None, typer.Option(help="What to curate; without it the recipe's own sources.")
    ] = None,
    workers: Workers = 0,
    memory: Annotated[str, typer.Option(help="For curation, for example 8GiB.")] = "8GiB",
    as_json: Json = False,
) -> None:
    """Turn the whole wheel as a Prefect flow: curate, tokenize, mix, pretrain, export, report."""
    with _errors():
        result = _stage("flywheel", True)(
            recipe=recipe, out=out, sources=tuple(source or ()), workers=workers, memory=memory
        )
        if as_json:
            _print_json(result)
        else:
            from flows.console import print_wheel

            print_wheel(result, out)


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ValueError(f"{option} {text!r}: wanted NAME=VALUE, for example web=tokens")
    return name, value


def _grouped(texts: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, value in (_pair("--where", text) for text in texts):
        groups.setdefault(name, []).append(value)
    return groups


def _show(result: dict[str, Any], as_json: bool, line: str) -> None:
    if as_json:
        _print_json(result)
    else:
        from flows.console import print_result

        print_result(result, line)


def _stage(name: str, prefect: bool) -> Any:
    if prefect:
        from flows import orchestrate

        return getattr(orchestrate, name)
    from flows import stages

    return getattr(stages, name)


def _print_json(result: Any) -> None:
    sys.stdout.write(json.dumps(result, ensure_ascii=False, default=str) + "\n")


@contextmanager
def _errors() -> Iterator[None]:
    """Turns what the stages raise into a message and an exit code."""
    try:
        yield
    except ValueError as error:
        _fail(str(error), 2)
    except (RuntimeError, OSError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to continue where it stopped", 1)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"gristmill: {message}\n")
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `gristmill` command."""
    app()


if __name__ == "__main__":
    main()
