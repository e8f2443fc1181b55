"""The manifest: what a dataset is, what made it, and where every document went."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pipelines.checks import silent_rules, skipped_comparisons
from pipelines.cuts import cut_names, cut_totals
from pipelines.dataset import file_entry
from pipelines.engines.job import Job
from pipelines.global_step import DropStep, PairStep
from pipelines.inputs import write_inputs
from pipelines.layout import ERROR_RULE, NO_TEXT, TAKEN_DOWN
from pipelines.recipe import Source
from pipelines.span_step import SpanStep
from pipelines.statistics import KEPT, skipped
from pipelines.step import Editor, Filter


def make_manifest(
    job: Job,
    sources: Sequence[Source],
    identity: dict[str, Any],
    mark: str,
    records: list[dict[str, Any]],
    counts: dict[str, Any],
    amended: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Writes the inputs table and returns the manifest. It holds no times and no host names.

    Args:
        job: the job.
        sources: what it read.
        identity: all that the bytes depend on beside the input.
        mark: the fingerprint.
        records: of the units that it wrote.
        counts: their statistics.
        amended: records of what it says of earlier snapshots.
    """
    inputs = write_inputs(job, records)
    totals: dict[str, list[int]] = {}
    types: Counter[str] = Counter()
    for source in counts.values():
        for rule, (documents, size) in source["outcome"].items():
            total = totals.setdefault(rule, [0, 0])
            total[0] += documents
            total[1] += size
    for record in records:
        types.update(record["records"])
    documents = sum(total[0] for total in totals.values())
    files = [entry for record in (*records, *amended) for entry in record["files"]]
    num_spans = sum(len(unit.spans) for unit in job.plan.units[job.first :])
    files.append(file_entry(job.out, inputs, num_spans))
    warnings = []
    if counts:  # a takedown reads nothing
        warnings += [f"rule {rule} dropped nothing" for rule in silent_rules(job, counts)]
        warnings += skipped_comparisons(counts)
        warnings += [
            f"step {cut['step']} cut nothing ({cut['name']})"
            for cut in _cuts(job, counts)
            if not cut["bytes"]
        ]
    return {
        "gristmill": version("gristmill"),
        "recipe": {"fingerprint": mark} | identity,
        "sources": [
            {"name": source.name, "root": source.root} | _source_counts(counts[source.name])
            for source in sources
        ],
        "documents_in": documents,
        "kept": totals.get(KEPT, [0, 0])[0],
        "dropped": documents - totals.get(KEPT, [0, 0])[0],
        "bytes_in": sum(total[1] for total in totals.values()),
        "bytes_kept": totals.get(KEPT, [0, 0])[1],
        "records": dict(sorted(types.items())),
        "rules": _rules(job, totals, counts),
        "signals": _signals(job),
        "cuts": _cuts(job, counts),
        "unread_files": len(job.plan.unclaimed),
        "unread_examples": [path for _, path in job.plan.unclaimed[:20]],
        "warnings": warnings,
        "files": sorted(files, key=lambda entry: entry["path"]),
        "identity": hashlib.sha256(
            "".join(entry["sha256"] for entry in files).encode()
        ).hexdigest(),
    }


def _source_counts(counts: dict[str, Any]) -> dict[str, Any]:
    kept = counts["outcome"].get(KEPT, [0, 0])
    return {
        "documents_in": counts["documents"],
        "bytes_in": counts["bytes"],
        "kept": kept[0],
        "bytes_kept": kept[1],
    }


def _rules(job: Job, totals: dict[str, list[int]], counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns every rule in the order in which it is asked, with what it broke and dropped."""
    rules: list[dict[str, Any]] = []

    def add(name: str, step: str, **more: Any) -> None:
        dropped = totals.get(name, [0, 0])
        broken = sum(source["broken"].get(name, 0) for source in counts.values())
        rule = {"name": name, "step": step, "broken": max(broken, dropped[0])}
        rules.append(rule | {"dropped": dropped[0], "dropped_bytes": dropped[1]} | more)

    for name in sorted(totals):
        if name.startswith(ERROR_RULE):
            add(name, "reader")
    if job.takedown:
        add(TAKEN_DOWN, "takedown")
    add(NO_TEXT, "reader")
    for step in job.recipe.steps:
        if isinstance(step, Filter):
            for rule in step.rules:
                threshold = getattr(step, rule.threshold)
                question = {"column": rule.column, "comparison": rule.comparison}
                parameter = {"parameter": rule.threshold, "threshold": threshold}
                add(rule.name, step.name, **question, **parameter)
        elif isinstance(step, DropStep):
            more = {"skipped": skipped(counts, step.rule)} if isinstance(step, PairStep) else {}
            add(step.rule, step.name, **more)
    return rules


def _signals(job: Job) -> dict[str, dict[str, str]]:
    """Returns for every signal its step and which text it saw."""
    signals, text = {}, "source"
    for step in job.recipe.steps:
        if isinstance(step, Filter | Editor | SpanStep):
            for name in step.adds.names:
                if name != "text":
                    signals[name] = {"step": step.name, "text": text}
        if "text" in step.adds.names:
            text = f"after {step.name}"
    return signals


def _cuts(job: Job, counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what each step that cuts took out; `last` if no later step changes the text."""
    cuts: list[dict[str, Any]] = []
    for step in job.recipe.steps:
        if "text" in step.adds.names:
            for cut in cuts:
                cut["last"] = False
        for name in cut_names(step.adds):
            cuts.append({"name": name, "step": step.name, "last": True} | cut_totals(counts, name))
    return cuts
