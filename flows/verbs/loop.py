"""Verbs that close the loop: classifier, serve, synth, flywheel, schedule."""

from typing import Annotated, Any

import typer

from flows.verbs.app import AsFlow, Json, Out, Workers, app, errors, print_json, show_result, stage


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
    with errors():
        result = stage("flywheel", True)(
            recipe=recipe, out=out, sources=tuple(source or ()), workers=workers, memory=memory
        )
        if as_json:
            print_json(result)
        else:
            from flows.console import print_wheel

            print_wheel(result, out)


@app.command(epilog="Example: gristmill serve model --port 8101")
def serve(
    model: Annotated[str, typer.Argument(help="Folder that export wrote.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8101,
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16; float32 on a CPU if not given.")
    ] = "",
    max_model_len: Annotated[int, typer.Option(help="Tokens of prompt and answer.")] = 2048,
) -> None:
    """Serve a model with vLLM, in an environment that sets itself up, until interrupted."""
    with errors():
        stage("serve", False)(
            model=model, host=host, port=port, dtype=dtype, max_model_len=max_model_len
        )


@app.command(
    epilog="Example: gristmill synth flows.recipes.packages:traces --model model --out traces"
)
def synth(
    recipe: Annotated[str, typer.Argument(help="module:function or file.py:function.")],
    model: Annotated[str, typer.Option(help="URL of a server, or a folder that export wrote.")],
    out: Out,
    concurrency: Annotated[int, typer.Option(help="Requests in flight.")] = 64,
    as_json: Json = False,
    prefect: AsFlow = False,
) -> None:
    """Generate and verify reasoning traces; the same command asks only for what is missing."""
    with errors():
        result = stage("synth", prefect)(
            recipe=recipe, model=model, out=out, concurrency=concurrency
        )
        if as_json:
            print_json(result)
        else:
            from flows.console import print_manifest

            print_manifest(result, out)


classifier_app = typer.Typer(help="Train quality classifiers.", no_args_is_help=True)
app.add_typer(classifier_app, name="classifier")

TextColumn = Annotated[str, typer.Option(help="Column with the text.")]
LabelColumn = Annotated[str, typer.Option(help="Column with the label.")]
PositiveLabel = Annotated[list[str] | None, typer.Option(help="Label of good documents.")]


@classifier_app.command(
    "train", epilog="Example: gristmill classifier train labelled.parquet --out quality"
)
def classifier_train(
    out: Out,
    documents: Annotated[
        list[str] | None, typer.Argument(help="Labelled: datasets, Parquet or JSON Lines.")
    ] = None,
    positive: Annotated[list[str] | None, typer.Option(help="Good documents.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="Bad documents.")] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="What the bins are cut on; the labelled if not given.")
    ] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    positive_label: PositiveLabel = None,
    group: Annotated[
        str, typer.Option(help="Column; documents of one group are all trained or all tested on.")
    ] = "",
    newline: Annotated[str, typer.Option(help="space, nothing or lines.")] = "space",
    seed: Annotated[int, typer.Option(help="Of sample, split and training.")] = 0,
    holdout: Annotated[float, typer.Option(help="Share that is tested on.")] = 0.2,
    sample: Annotated[str, typer.Option(help="Text of each class at most.")] = "64MiB",
    as_json: Json = False,
) -> None:
    """Train a quality classifier (fastText) from labelled documents, with held-out metrics."""
    with errors():
        columns: dict[str, Any] = {"text": text_column, "label": label_column, "group": group}
        if positive_label:
            columns["positive"] = tuple(positive_label)
        result = stage("train_classifier", False)(
            out=out,
            documents=tuple(documents or ()),
            positive=tuple(positive or ()),
            negative=tuple(negative or ()),
            reference=tuple(reference or ()),
            columns=columns,
            newline=newline,
            seed=seed,
            holdout=holdout,
            sample=sample,
        )
        show_result(result, as_json, f"classifier: {out}")


@classifier_app.command(
    "eval", epilog="Example: gristmill classifier eval quality labelled.parquet"
)
def classifier_eval(
    model: Annotated[str, typer.Argument(help="Folder of a classifier.")],
    documents: Annotated[list[str], typer.Argument(help="Labelled documents.")],
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    positive_label: PositiveLabel = None,
    as_json: Json = False,
) -> None:
    """Score a quality classifier on labelled documents."""
    with errors():
        columns: dict[str, Any] = {"text": text_column, "label": label_column}
        if positive_label:
            columns["positive"] = tuple(positive_label)
        result = stage("evaluate_classifier", False)(
            model=model, documents=tuple(documents), columns=columns
        )
        show_result(result, as_json, f"classifier: {model}")


@app.command(
    epilog='Example: gristmill schedule curate --cron "0 3 * * *" --param out=web/{scheduled} '
    "--param recipe=flows.recipes.web:english_web --param sources=crawl/"
)
def schedule(
    flow: Annotated[
        str, typer.Argument(help="curate, tokenize, mix, pretrain, synth, sft, publish, flywheel.")
    ] = "",
    cron: Annotated[str, typer.Option(help="When: minute hour day month weekday.")] = "",
    param: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE; {scheduled} is the planned time.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the deployment.")] = "scheduled",
    timezone: Annotated[str, typer.Option(help="Of the cron, for example Europe/Berlin.")] = "UTC",
    pool: Annotated[str, typer.Option(help="Work pool.")] = "gristmill",
    folder: Annotated[str, typer.Option(help="Where runs work.")] = ".",
    list_: Annotated[bool, typer.Option("--list", help="List the schedules.")] = False,
    remove: Annotated[str, typer.Option(help="FLOW/NAME to remove.")] = "",
    as_json: Json = False,
) -> None:
    """Schedule a flow at the Prefect server of PREFECT_API_URL."""
    with errors():
        from flows import schedule as run

        if list_:
            show_result({"schedules": run.schedules()}, as_json, "schedules")
        elif remove:
            run.unschedule(remove)
            show_result({"removed": remove}, as_json, f"removed: {remove}")
        else:
            parameters = run.read_parameters(flow, param or [])
            where = {"name": name, "timezone": timezone, "pool": pool, "folder": folder}
            result = run.schedule(flow, cron, parameters, **where)
            show_result(result, as_json, f"scheduled: {flow}/{name}")
