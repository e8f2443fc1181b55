"""Verbs about datasets: curate, takedown, compact, why, show, report, publish."""

from typing import Annotated

import typer

from flows.verbs.app import (
    AsFlow,
    Json,
    Out,
    Workers,
    app,
    errors,
    pair,
    print_json,
    show_result,
    stage,
)
from pipelines.engines.fork_server import start_for


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
    argument: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, an argument of the recipe's function.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash the inputs again.")] = False,
    engine: Annotated[str, typer.Option(help="local or spark; the result is the same.")] = "local",
    master: Annotated[
        str, typer.Option(help="Where Spark runs: local[2], spark://host:7077, yarn, ...")
    ] = "local[*]",
    against: Annotated[
        str,
        typer.Option(
            help="Folder of an index: the run sees the snapshots in it as earlier documents, says "
            "what has changed of them, and is added. A new folder starts an index."
        ),
    ] = "",
    takedown: Annotated[
        list[str] | None,
        typer.Option(
            help="List of documents to drop before all else: a file with an id or URL a line, or "
            "the folder of a takedown. May be given several times; an index has its own."
        ),
    ] = None,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Run a recipe over sources into a dataset."""
    if engine == "local" and not prefect:
        start_for(recipe)  # beside all that is loaded here
    with errors():
        result = stage("curate", prefect)(
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
            against=against,
            takedown=tuple(takedown or ()),
            arguments=dict(pair("--argument", text) for text in argument or []),
        )
        if as_json:
            print_json(result)
        else:
            from flows.console import print_manifest

            print_manifest(result, out)


@app.command(
    epilog="Example: gristmill takedown mine.py:mine requests.txt --against index --out web-2026-b"
)
def takedown(
    recipe: Annotated[str, typer.Argument(help="That of the index: module:function.")],
    names: Annotated[
        str,
        typer.Argument(
            metavar="LIST", help="File with a document id or a URL on each line, or a takedown."
        ),
    ],
    against: Annotated[str, typer.Option(help="Folder of the index.")],
    out: Out,
    copies: Annotated[
        bool,
        typer.Option(
            "--with-copies/--without-copies",
            help="Take down equal documents and near-duplicates too, and keep later snapshots "
            "clean of equal ones; or let the copies stay or come back.",
        ),
    ] = True,
    workers: Workers = 0,
    memory: Annotated[str, typer.Option(help="For the whole run, for example 8GiB.")] = "8GiB",
    argument: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, an argument of the recipe's function.")
    ] = None,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Take documents out of the snapshots of an index: what changes, and no text of theirs."""
    with errors():
        result = stage("takedown", prefect)(
            recipe=recipe,
            names=names,
            against=against,
            out=out,
            copies=copies,
            workers=workers,
            memory=memory,
            arguments=dict(pair("--argument", text) for text in argument or []),
        )
        if as_json:
            print_json(result)
        else:
            from flows.console import print_takedown

            print_takedown(result, out)


@app.command(epilog="Example: gristmill compact web-2025 web-2026 --out web")
def compact(
    datasets: Annotated[
        list[str], typer.Argument(help="One dataset, or all snapshots of an index in order.")
    ],
    out: Out,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Write snapshots as one dataset, in canonical order."""
    with errors():
        result = stage("compact", prefect)(datasets=tuple(datasets), out=out)
        if as_json:
            print_json(result)
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
    with errors():
        from pipelines.dataset import Dataset
        from pipelines.explain import compared
        from pipelines.explain import why as explain

        found = Dataset(dataset)
        result = explain(found, document)
        if as_json:
            print_json(result)
        else:
            from flows.console import print_why

            print_why(result, compared(found, result["ledger"]))


@app.command(epilog="Example: gristmill show web --rule too_few_words")
def show(
    dataset: Annotated[str, typer.Argument(help="Folder of a dataset.")],
    rule: Annotated[str, typer.Option(help="Name of a rule, as the report lists them.")],
    number: Annotated[int, typer.Option("-n", help="How many documents.")] = 5,
    as_json: Json = False,
) -> None:
    """Show documents that a rule dropped."""
    with errors():
        from pipelines.dataset import Dataset
        from pipelines.explain import examples

        result = examples(Dataset(dataset), rule, number)
        if as_json:
            print_json(result)
        else:
            from flows.console import print_examples

            print_examples(result, rule)


@app.command(epilog="Example: gristmill report web --open")
def report(
    folder: Annotated[str, typer.Argument(help="Folder of a dataset, training or flywheel.")],
    open_: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Serve a page that follows a training, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the live page; 0 takes a free one.")] = 8102,
    as_json: Json = False,
) -> None:
    """Write a self-contained HTML page about a dataset or a run, or serve one that follows it."""
    with errors():
        import webbrowser
        from pathlib import Path

        if live:

            def ready(address: str) -> None:
                show_result({"address": address}, as_json, f"live report: {address} (Ctrl-C ends)")
                if open_:
                    webbrowser.open(address)

            stage("live_report", False)(folder=folder, port=port, ready=ready)
            return
        result = stage("report", False)(folder=folder)
        if open_:
            webbrowser.open(Path(result["report"]).resolve().as_uri())
        show_result(result, as_json, f"report: {result['report']}")


@app.command(epilog="Example: gristmill publish web --repo me/web --licence ODC-By-1.0")
def publish(
    dataset: Annotated[str, typer.Argument(help="Folder of a dataset.")],
    repo: Annotated[str, typer.Option(help="namespace/name on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it.")] = False,
    licence: Annotated[str, typer.Option(help="SPDX identifier, for example ODC-By-1.0.")] = "",
    no_ledger: Annotated[bool, typer.Option("--no-ledger", help="Leave the ledger out.")] = False,
    dropped: Annotated[bool, typer.Option("--dropped", help="With the dropped texts.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what the repository holds.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and end.")] = False,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Publish a dataset with its card on the Hugging Face Hub; HF_TOKEN is the token."""
    with errors():
        result = stage("publish", prefect)(
            dataset=dataset,
            repo=repo,
            private=not public,
            licence=licence,
            ledger=not no_ledger,
            dropped=dropped,
            replace=replace,
            dry_run=dry_run,
        )
        if dry_run and not as_json:
            typer.echo(result["card"])
        else:
            show_result(result, as_json, f"published: {result['url']}")
