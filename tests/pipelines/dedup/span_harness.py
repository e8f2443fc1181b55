"""Runs a span step's stages in this process, in as many parts as a test likes."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.engines import mark_files
from pipelines.engines.job import Job
from pipelines.engines.phase_files import mark_complete
from pipelines.engines.piece_stages import piece_bucket
from pipelines.engines.stages import map_unit, write_unit
from pipelines.engines.window_stages import cut_unit, gather_unit, repeated_bucket, window_part
from pipelines.layout import make_layout
from pipelines.plan import make_plan
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source
from pipelines.span_step import PieceStep, SpanStep


def run_stages(
    folder: Path, files: list[list[str]], step: SpanStep, parts: int, run_marks: int
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Cuts texts of some sources.

    Returns:
        The texts before, by id, and of each id the ledger row with `after`, the text that is left.
    """
    sources = []
    for number, rows in enumerate(files):
        path = folder / f"s{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        sources.append(Source(f"s{number}", str(path)))
    recipe = Recipe("spans", (JsonlReader(),), (step,))
    plan = make_plan(recipe.readers, tuple(sources), lambda file: False)
    layout = make_layout(recipe, plan)
    job = Job(recipe, plan, layout, folder / "out", folder / "work", "all", 1.0)
    units = range(len(plan.units))
    before, mark_files.RUN_MARKS = mark_files.RUN_MARKS, run_marks
    try:
        for unit in units:
            map_unit(job, 0, unit)
    finally:
        mark_files.RUN_MARKS = before
    if isinstance(step, PieceStep):
        for part in range(parts):
            piece_bucket(job, 0, part, parts)
    else:
        for part in range(parts):
            repeated_bucket(job, 0, part, parts)
        for unit in units:
            gather_unit(job, 0, unit, parts)
        for part in range(parts):
            window_part(job, 0, part, parts)
        for unit in units:
            cut_unit(job, 0, unit)
    mark_complete(job.verdicts(0))
    for unit in units:
        write_unit(job, unit)
    return texts_and_rows(folder / "out", files)


def texts_and_rows(
    out: Path, files: list[list[str]]
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Returns the texts before, by id, and of each id the ledger row with `after`."""
    ledger, data, dropped = (
        pq.read_table(sorted((out / kind).glob("*.parquet"))).to_pylist()
        for kind in ("ledger", "data", "dropped")
    )
    texts: dict[str, str] = {}
    for number, rows in enumerate(files):
        mine = [row for row in ledger if row["source"] == f"s{number}"]
        mine.sort(key=lambda row: row["origin"]["offset"])
        texts |= {row["id"]: text for row, text in zip(mine, rows, strict=True)}
    after = {row["id"]: row["text"] for row in (*data, *dropped)}
    return texts, {row["id"]: row | {"after": after[row["id"]]} for row in ledger}
