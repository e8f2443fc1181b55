"""Writes traces as a dataset: accepted ones to data, others to dropped, each to the ledger.

Rows are in the order of their ids, whatever the order of the answers was, so the files depend on
the recipe and on what the model said.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.atomic import written
from pipelines.dataset import file_entry
from pipelines.progress import progress
from pipelines.recipe import fingerprint
from pipelines.statistics import KEPT
from synth.journal import Journal
from synth.math_verifier import MathVerifier
from synth.problems import Problem
from synth.recipe import SynthRecipe
from synth.sampling import Request
from synth.trace_rows import ALL_RULES, DATA, DROPPED, LEDGER, SIGNALS, Trace
from synth.verification import judge

FILE_TRACES = 50_000
"""Traces whose rows are in memory at a time, some 2 kB each, and in a file."""
SCHEMAS = {"data": DATA, "dropped": DROPPED, "ledger": LEDGER}


def traces(
    recipe: SynthRecipe,
    problems: dict[str, Problem],
    requests: Sequence[Request],
    journal: Journal,
) -> Iterator[Trace]:
    """Yields the traces in the order of their ids, verified.

    A trace that says word for word what an accepted one of the same problem says is a duplicate.
    """
    accepted: dict[bytes, str] = {}
    total = len(requests)
    with MathVerifier() as verifier, progress("verify", total, "trace") as bar:
        for request in sorted(requests, key=lambda request: request.identity):
            answer, problem = journal[request.identity], problems[request.problem_id]
            reading = recipe.layout.read(answer.text)
            judgement = judge(problem, reading, answer.finish_reason, verifier)
            trace = Trace(problem, request, answer, reading, judgement, None)
            if judgement.reason is None:
                first = accepted.setdefault(trace.text_key(), request.identity)
                if first != request.identity:
                    trace = Trace(problem, request, answer, reading, judgement, first)
            yield trace
            bar.advance(1)


def write_traces(recipe: SynthRecipe, out: Path, found: Iterator[Trace]) -> dict[str, Any]:
    """Writes the files and returns the manifest but for its recipe.

    Raises:
        RuntimeError: fewer traces than the recipe's `min_accepted` are accepted.
    """
    for kind in SCHEMAS:
        shutil.rmtree(out / kind, ignore_errors=True)
    files: list[dict[str, Any]] = []
    outcomes: Counter[tuple[str, str]] = Counter()  # (family, rule or kept): traces
    sizes: Counter[tuple[str, str]] = Counter()  # bytes of text
    broken: Counter[str] = Counter()
    number = -1
    while part := list(islice(found, FILE_TRACES)):
        number += 1
        rows = _rows(recipe, part)
        for row in rows["ledger"]:
            outcome = (row["source"], row["dropped_by"] or KEPT)
            outcomes[outcome] += 1
            sizes[outcome] += row["text_bytes"]
            broken.update(rule for rule in ALL_RULES if row[f"fails_{rule}"])
        for kind, schema in SCHEMAS.items():
            path = out / kind / f"{number:05d}.parquet"
            files.append(_write(out, path, rows[kind], schema))
    accepted = sum(n for (_, rule), n in outcomes.items() if rule == KEPT)
    if accepted < recipe.min_accepted:
        listed: Counter[str] = Counter()
        for (_, rule), traces_of_rule in outcomes.items():
            listed[rule] += traces_of_rule
        counts = ", ".join(f"{rule} {n}" for rule, n in listed.most_common())
        raise RuntimeError(
            f"{recipe.name}: {accepted} of {sum(outcomes.values())} traces are accepted, wanted "
            f"{recipe.min_accepted}: {counts}. Nothing is committed; the answers are in the "
            f"journal. Train the model further, or lower min_accepted."
        )
    return _counts(recipe, outcomes, sizes, broken) | {
        "gristmill": version("gristmill"),
        "signals": {name: {"step": "verify", "text": "generated"} for name in SIGNALS.names},
        "cuts": [],
        "files": sorted(files, key=lambda entry: entry["path"]),
        "identity": fingerprint({"files": [entry["sha256"] for entry in files]}),
    }


def _rows(recipe: SynthRecipe, part: Sequence[Trace]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in SCHEMAS}
    for trace in part:
        document = trace.document(recipe.layout, recipe.split)
        rows["dropped" if trace.dropped_by else "data"].append(document)
        rows["ledger"].append(trace.ledger(recipe.layout, recipe.split))
    return rows


def _write(out: Path, path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> dict[str, Any]:
    with written(path) as temporary, ExitStack() as stack:
        writer = pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            write_page_index=True,
            use_content_defined_chunking=True,
        )
        stack.enter_context(writer).write_table(pa.Table.from_pylist(rows, schema))
        stack.close()
    return file_entry(out, path, len(rows))


def _counts(
    recipe: SynthRecipe,
    outcomes: Counter[tuple[str, str]],
    sizes: Counter[tuple[str, str]],
    broken: Counter[str],
) -> dict[str, Any]:
    """Returns where every trace went, in the words of a curated dataset's manifest."""

    def total(counter: Counter[tuple[str, str]], family: str = "", rule: str = "") -> int:
        return sum(
            number
            for (of, by), number in counter.items()
            if family in ("", of) and rule in ("", by)
        )

    rules = [
        {
            "name": rule,
            "step": "verify",
            "broken": broken[rule],
            "dropped": total(outcomes, rule=rule),
            "dropped_bytes": total(sizes, rule=rule),
        }
        for rule in ALL_RULES
    ]
    sources = [
        {
            "name": family.name,
            "root": repr(family),
            "documents_in": total(outcomes, family.name),
            "bytes_in": total(sizes, family.name),
            "kept": total(outcomes, family.name, KEPT),
            "bytes_kept": total(sizes, family.name, KEPT),
        }
        for family in recipe.families
    ]
    kept = total(outcomes, rule=KEPT)
    return {
        "sources": sources,
        "documents_in": total(outcomes),
        "kept": kept,
        "dropped": total(outcomes) - kept,
        "bytes_in": total(sizes),
        "bytes_kept": total(sizes, rule=KEPT),
        "records": {"answer": total(outcomes)},
        "rules": rules,
        "unread_files": 0,
        "unread_examples": [],
        "warnings": [f"rule {rule} dropped nothing" for rule in ALL_RULES if not broken[rule]],
    }
