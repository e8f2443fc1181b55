"""The checks between the last stage and the commit: conservation and loud no-ops (laws 2 and 6)."""

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.blast_radius import examples
from pipelines.engines.job import Job
from pipelines.layout import ERROR_RULE, TAKEN_DOWN
from pipelines.limits import Limit
from pipelines.span_step import SpanStep
from pipelines.statistics import KEPT, skipped

EXAMPLES = 3
"""Documents that are named where a step cuts too much."""


def check_counts(job: Job, records: list[dict[str, Any]], counts: dict[str, Any]) -> None:
    """Stops a run whose counts do not add up or that did nothing.

    Raises:
        RuntimeError: says what is wrong, with examples where there are any.
    """
    name = job.recipe.name
    rows = {kind: _rows(records, kind) for kind in ("data", "dropped", "ledger")}
    documents = sum(source["documents"] for source in counts.values())
    if rows["data"] + rows["dropped"] != rows["ledger"] or rows["ledger"] != documents:
        raise RuntimeError(
            f"{name}: {documents} documents in, but {rows['data']} kept + {rows['dropped']} "
            f"dropped and {rows['ledger']} ledger rows. This is an error in gristmill or in a "
            f"step; nothing is committed."
        )
    for source in {unit.source for unit in job.plan.units[job.first :]}:
        if source not in counts:
            raise RuntimeError(
                f"{name}: source {source} has no documents at all. Check the path, and that the "
                f"files hold what their names say."
            )
    if not rows["data"] and not job.first:  # a later snapshot may hold nothing but copies
        outcomes: dict[str, int] = {}
        for source in counts.values():
            for rule, (number, _) in source["outcome"].items():
                outcomes[rule] = outcomes.get(rule, 0) + number
        listed = ", ".join(
            f"{rule} {n}" for rule, n in sorted(outcomes.items(), key=lambda i: -i[1])
        )
        raise RuntimeError(
            f"{name}: all {documents} documents were dropped: {listed}. Check the recipe.\n"
            + "\n".join(examples(job, max(outcomes, key=lambda rule: outcomes[rule])))
        )
    reached = {rule for source in counts.values() for rule in source["outcome"]}
    for signal in job.layout.signals.names:
        if job.takedown and all(_ends_early(rule) for rule in reached):
            break  # a snapshot of nothing but what was taken down
        if not any(source["valid"].get(signal) for source in counts.values()):
            raise RuntimeError(
                f"{name}: column {signal!r} is null in every document, so the step that adds it "
                f"did nothing. Check what it reads."
            )
    for rule in job.recipe.must_fire:
        if not any(source["broken"].get(rule) for source in counts.values()):
            raise RuntimeError(f"{name}: rule {rule} must fire and dropped nothing")


def check_cuts(job: Job, counts: dict[str, Any]) -> None:
    """Stops a run in which a step cuts more of a source's text than its max_share.

    The text is what it cut and what is left of the kept documents, in bytes.

    Raises:
        RuntimeError: says of which source how much, with examples.
    """
    for step in job.recipe.steps:
        if not isinstance(step, SpanStep):
            continue
        limit = Limit("source", step.max_share)
        for source, found in counts.items():
            cut = found["cut"].get(step.spans, [0, 0, 0])[2]
            text = cut + found["outcome"].get(KEPT, [0, 0])[1]
            if found["documents"] >= limit.min_documents and cut > step.max_share * text:
                raise RuntimeError(
                    f"{job.recipe.name}: {step.name} would cut {cut} of {text} bytes of source "
                    f"{source} ({100 * cut / text:.1f}%); the limit is {100 * step.max_share:g}%. "
                    f"Nothing is committed. If this is right, write {step.name}.max_share = 1 "
                    f"beside the recipe and run the same command again: only the checks are "
                    f"repeated.\nExamples:\n" + "\n".join(_first_cut(job, step.spans, source))
                )


def _first_cut(job: Job, name: str, source: str) -> Iterator[str]:
    left = EXAMPLES
    columns = ["id", "source", "origin", f"{name}_bytes", f"n_{name}_spans"]
    for path in sorted((job.out / "ledger").glob("*.parquet")):
        table = pq.read_table(path, columns=columns)
        mine = pc.and_(pc.equal(table["source"], source), pc.greater(table[columns[3]], 0))
        for row in table.filter(mine).slice(0, left).to_pylist():
            place = f"{row['id']} {row['origin']['path']}"
            yield f"{place}: {row[columns[3]]} bytes cut in {row[columns[4]]} spans"
            left -= 1
        if not left:
            return


def silent_rules(job: Job, counts: dict[str, Any]) -> list[str]:
    """Returns the rules that no document broke."""
    return [
        rule
        for rule in job.layout.rules
        if not any(source["broken"].get(rule) for source in counts.values())
    ]


def skipped_comparisons(counts: dict[str, Any]) -> list[str]:
    """Returns what to say of documents that were not compared with all that they might be like."""
    rules = {rule for source in counts.values() for rule in source["skipped"]}
    warnings = []
    for rule in sorted(rules):
        found = skipped(counts, rule)
        if found["documents"]:
            warnings.append(
                f"rule {rule}: {found['documents']} documents stayed that were not compared with "
                f"all kept ones of their groups ({found['comparisons']} comparisons left out); a "
                f"larger max_anchors compares more"
            )
    return warnings


def _ends_early(rule: str) -> bool:
    """Says whether a document that it drops has no signals."""
    return rule == TAKEN_DOWN or rule.startswith(ERROR_RULE)


def _rows(records: list[dict[str, Any]], kind: str) -> int:
    return sum(
        file["rows"]
        for record in records
        for file in record["files"]
        if file["path"].startswith(f"{kind}/")
    )
