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
