"""The checks between the last stage and the commit: conservation and loud no-ops (laws 2 and 6)."""

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.engines.job import Job
from pipelines.global_step import GlobalStep
from pipelines.statistics import KEPT
from pipelines.step import Filter

SHARE_FROM_DOCUMENTS = 1_000
EXAMPLES = 3
EXAMPLE_CHARACTERS = 200


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
    for source in {unit.source for unit in job.plan.units}:
        if source not in counts:
            raise RuntimeError(
                f"{name}: source {source} has no documents at all. Check the path, and that the "
                f"files hold what their names say."
            )
    if not rows["data"]:
        outcomes: dict[str, int] = {}
        for source in counts.values():
            for rule, (number, _) in source["outcome"].items():
                outcomes[rule] = outcomes.get(rule, 0) + number
        listed = ", ".join(
            f"{rule} {n}" for rule, n in sorted(outcomes.items(), key=lambda i: -i[1])
        )
        raise RuntimeError(
            f"{name}: all {documents} documents were dropped: {listed}. Check the recipe.\n"
            + "\n".join(_examples(job, max(outcomes, key=lambda rule: outcomes[rule]), ""))
        )
    for signal in job.layout.signals.names:
        if not any(source["valid"].get(signal) for source in counts.values()):
            raise RuntimeError(
                f"{name}: column {signal!r} is null in every document, so the step that adds it "
                f"did nothing. Check what it reads."
            )
    _check_shares(job, counts)
    for rule in job.recipe.must_fire:
        if not any(source["broken"].get(rule) for source in counts.values()):
            raise RuntimeError(f"{name}: rule {rule} must fire and dropped nothing")


def silent_rules(job: Job, counts: dict[str, Any]) -> list[str]:
    """Returns the rules that no document broke."""
    return [
        rule
        for rule in job.layout.rules
        if not any(source["broken"].get(rule) for source in counts.values())
    ]


def _check_shares(job: Job, counts: dict[str, Any]) -> None:
    limits = dict(_limits(job))
    for source, count in counts.items():
        if count["documents"] < SHARE_FROM_DOCUMENTS:
            continue
        for rule, (number, _) in count["outcome"].items():
            if rule != KEPT and number > limits.get(rule, 1.0) * count["documents"]:
                raise RuntimeError(
                    f"{job.recipe.name}: rule {rule} would drop {number} of {count['documents']} "
                    f"documents of source {source}; its limit is {limits[rule]:.0%}. Nothing is "
                    f"committed. If this is right, raise the rule's max_share. Examples:\n"
                    + "\n".join(_examples(job, rule, source))
                )


def _limits(job: Job) -> Iterator[tuple[str, float]]:
    for step in job.recipe.steps:
        if isinstance(step, Filter):
            yield from ((rule.name, rule.max_share) for rule in step.rules)
        elif isinstance(step, GlobalStep):
            yield step.rule, step.max_share


def _examples(job: Job, rule: str, source: str) -> Iterator[str]:
    """Yields the first dropped documents of a rule; of any source if none is named."""
    left = EXAMPLES
    for path in sorted((job.out / "dropped").glob("*.parquet")):
        table = pq.read_table(path, columns=["id", "source", "origin", "text", "dropped_by"])
        mask = pc.equal(table.column("dropped_by"), rule)
        if source:
            mask = pc.and_(mask, pc.equal(table.column("source"), source))
        for row in table.filter(mask).slice(0, left).to_pylist():
            text = " ".join((row["text"] or "").split())[:EXAMPLE_CHARACTERS]
            yield f"  {row['id']} {row['origin']['path']}: {text}"
            left -= 1
        if not left:
            return


def _rows(records: list[dict[str, Any]], kind: str) -> int:
    return sum(
        file["rows"]
        for record in records
        for file in record["files"]
        if file["path"].startswith(f"{kind}/")
    )
