"""What every verb shares: the application, options, how a stage is run and how it fails."""

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


def pair(option: str, text: str) -> tuple[str, str]:
    """Reads NAME=VALUE, given with an option.

    Raises:
        ValueError: it is not of that form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ValueError(f"{option} {text!r}: wanted NAME=VALUE, for example web=tokens")
    return name, value


def grouped(texts: list[str]) -> dict[str, list[str]]:
    """Reads NAME=VALUE texts into the values of each name."""
    groups: dict[str, list[str]] = {}
    for name, value in (pair("--where", text) for text in texts):
        groups.setdefault(name, []).append(value)
    return groups


def show_result(result: dict[str, Any], as_json: bool, line: str) -> None:
    """Prints a result as JSON or as a table that ends in a line."""
    if as_json:
        print_json(result)
    else:
        from flows.console import print_result

        print_result(result, line)


def stage(name: str, prefect: bool) -> Any:
    """Returns the plain function of a stage, or its Prefect flow."""
    if prefect:
        from flows import orchestrate

        return getattr(orchestrate, name)
    from flows import stages

    return getattr(stages, name)


def print_json(result: Any) -> None:
    """Prints a result as one JSON object on stdout."""
    sys.stdout.write(json.dumps(result, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


@contextmanager
def errors() -> Iterator[None]:
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
