"""A takedown: documents of an index's snapshots have to go, and what follows from that.

It is a snapshot without new documents. The documents that a list names are dropped before all else,
so global steps decide as if they had never been there: a copy that was dropped only in favour of
one may be kept now. What changes of the earlier datasets is written as a later snapshot would write
it, and the index remembers the list and loses the texts. So a chain with takedowns is what one run
over all sources with the same lists gives.

With copies, which is the default, the list is extended first: who wants a text to go wants its
copies to go, and they would come back otherwise. Documents that a step found equal are copies, and
those with an equal text, through any number of steps. A near-duplicate is one if it is itself
similar to a listed document, or to one equal to that, by the test of the recipe's PairStep: what
was dropped in favour of another is compared anew. Nothing goes through a chain of similarities.
"""

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.curate import Settings, run_job, start_engine, sweep_job
from pipelines.dataset import MANIFEST, WORK, Dataset, file_entry, write_json
from pipelines.engines.engine import Engine
from pipelines.engines.job import Job
from pipelines.engines.taken_down import (
    find_equal,
    find_listed,
    find_same,
    find_sets,
    find_similar,
    find_texts,
)
from pipelines.global_step import PairStep
from pipelines.index import Index, read_index
from pipelines.manifest import make_manifest
from pipelines.output_folder import check_output, locked
from pipelines.plan import Plan
from pipelines.progress import progress, say
from pipelines.recipe import Recipe, fingerprint
from pipelines.takedown_list import TAKEDOWN, Takedown, read_takedown

SHOWN = 3
"""Names that a message lists."""
Reasons = dict[str, dict[str, str]]
"""By document: `why` (listed, the rule of the step that finds the two equal or similar, or
equal_text), and of a copy the document that it was found by, `of`."""


def takedown(
    recipe: Recipe, names: str | Path, out: str | Path, settings: Settings, copies: bool = True
) -> dict[str, Any]:
    """Takes documents out of the snapshots of an index and returns the manifest of what changes.

    The folder gets `retractions`, `revivals`, `redropped` and `amendments`, as a later snapshot
    has them, without any text of what was taken down, and `takedown.json`: the documents and why.
    The datasets of the snapshots stay as they are; compact the chain and remove them.

    Args:
        recipe: of the index.
        names: a list, as `read_takedown` reads it.
        out: a new folder; a killed run is continued, a finished one returned as it is.
        settings: workers, memory, engine and `against`, the index.
        copies: take down the copies of the documents as well, and keep later snapshots clean of
            documents with their texts.

    Raises:
        ValueError: the index is none or of another recipe, the list names what it does not hold,
            or all of it is gone already. Nothing is changed then.
        RuntimeError: a worker died; run again to continue.
    """
    out, path = Path(out), Path(settings.against)
    listed, stored = read_takedown(names), read_index(path)
    identity = recipe.identity()
    identity |= {name: stored[name] for name in ("keep_dropped", "sample")}
    mark = fingerprint(identity)
    request = {"list": listed.identity(), "copies": copies}
    check_output(out, recipe.name, mark)
    with ExitStack() as locks:
        locks.enter_context(locked(path))
        index = Index(path, recipe.name, mark)
        now = _as_it_is(recipe, index, out, stored)
        if (out / MANIFEST).is_file():
            return _finish(index, now, request)
        reasons, whole = _named(now, listed, copies, settings)
        losing = _losing(now, whole, settings)
        job = index.thinned(now, index.takedown | whole, losing)
        locks.enter_context(locked(out))
        sweep_job(job)
        _, amended = run_job(job, settings)
        amended.append({"files": [_write_list(out, whole, reasons)]})
        manifest = make_manifest(job, (), identity, mark, [], {}, amended)
        manifest["removal"] = {}
        manifest["takedown"] = job.takedown.identity()
        manifest["against"] = index.account(job, manifest)
        manifest["taken_down"] = {
            "request": request,
            "listed": sum(reason["why"] == "listed" for reason in reasons.values()),
            "copies": sum(reason["why"] != "listed" for reason in reasons.values()),
        }
        write_json(out / MANIFEST, manifest)
        index.commit(job, Dataset(out).identity, manifest)
        shutil.rmtree(out / WORK)
    return manifest


def _as_it_is(recipe: Recipe, index: Index, out: Path, stored: dict[str, Any]) -> Job:
    """Returns the job that the index is the result of."""
    layout = index.layout(tuple(name for _, name in recipe.rule_names()))
    plan = Plan(index.units, ())
    settings = stored["keep_dropped"], stored["sample"]
    first = len(plan.units)
    return Job(recipe, plan, layout, out, index.path, *settings, first, index.takedown)


def _finish(index: Index, now: Job, request: dict[str, Any]) -> dict[str, Any]:
    """Returns a finished takedown's manifest, once the index has taken it in and forgotten."""
    held = Dataset(now.out)
    if held.manifest.get("taken_down", {}).get("request") != request:
        raise ValueError(
            f"{now.out} is finished, with another list or other snapshots. Give another --out."
        )
    if index.has(held.identity):
        index.sweep(now)
    else:  # killed between the two commits
        if held.manifest["against"]["before"] != index.identity():
            raise ValueError(
                f"{now.out} was finished against an earlier state of {index.path} and was never "
                f"taken in. Remove the folder and run the command again."
            )
        whole = index.takedown | read_takedown(now.out)
        losing = _losing(now, whole, Settings(workers=1))
        index.commit(index.thinned(now, whole, losing), held.identity, held.manifest)
    say(f"{now.out} is finished already, with the same list; nothing to do")
    return held.manifest


def _named(
    now: Job, listed: Takedown, copies: bool, settings: Settings
) -> tuple[Reasons, Takedown]:
    """Finds the documents that a list names and, if wanted, their copies.

    Returns:
        Why each document goes, and the list with all of them.
    """
    with start_engine(replace(now, takedown=listed), settings) as engine:
        found = _each(engine, now, "look up the list", find_listed)
        _check_known(now, listed, found)
        reasons: Reasons = {name: {"why": "listed"} for unit in found for name in unit["ids"]}
        if not any(unit["fresh"] for unit in found) and set(listed.texts) <= set(
            now.takedown.texts
        ):
            raise ValueError(
                f"{now.work}: all {len(reasons)} documents of the list have been taken down "
                f"already; nothing to do"
            )
        texts: list[str] = list(listed.texts)
        if copies:
            _add_equal(engine, now, reasons)
            _add_similar(engine, now, reasons)
            _add_equal(engine, now, reasons)
            wanted = pa.array(list(reasons), pa.string())
            for unit in _each(engine, now, "read their texts", find_texts, wanted):
                texts += unit
    whole = listed | Takedown(tuple(reasons), (), tuple(texts))
    if whole.texts:
        with start_engine(replace(now, takedown=whole), settings) as engine:
            for unit in _each(engine, now, "look for equal texts", find_same):
                for name in unit:
                    reasons.setdefault(name, {"why": "equal_text"})
    return reasons, whole | Takedown(tuple(reasons))


def _add_equal(engine: Engine, now: Job, reasons: Reasons) -> None:
    """Adds the documents that a step found equal to one of `reasons`, and to those, and so on."""
    fresh = list(reasons)
    while fresh:
        wanted, before = pa.array(fresh, pa.string()), set(fresh)
        fresh = []
        for unit in _each(engine, now, "look for equal documents", find_equal, wanted):
            for dropped, kept, rule in unit:
                for name, of in ((dropped, kept), (kept, dropped)):
                    if of in before and name not in reasons:
                        reasons[name] = {"why": rule, "of": of}
                        fresh.append(name)


def _add_similar(engine: Engine, now: Job, reasons: Reasons) -> None:
    """Adds the documents that are similar to one of `reasons`, and stops there."""
    wanted = pa.array(list(reasons), pa.string())
    for phase, (_, step) in enumerate(now.recipe.phases()[:-1]):
        if not isinstance(step, PairStep):
            continue
        found = _each(engine, now, "read their sets", find_sets, phase, wanted)
        sets = [entry for unit in found for entry in unit]
        for unit in _each(engine, now, "look for near-duplicates", find_similar, phase, sets):
            for name, of in unit:
                reasons.setdefault(name, {"why": step.rule, "of": of})


def _losing(now: Job, whole: Takedown, settings: Settings) -> set[int]:
    """Returns the units that lose a document."""
    with start_engine(replace(now, takedown=whole), settings) as engine:
        found = _each(engine, now, "count what goes", find_listed)
    return {number for number, unit in enumerate(found) if unit["fresh"]}


def _each(engine: Engine, now: Job, what: str, stage: Any, *arguments: Any) -> list[Any]:
    sizes = [unit.size for unit in now.plan.units]
    with progress(what, sum(sizes), "B") as bar:
        return engine.each(stage, [(n, *arguments) for n in range(len(sizes))], sizes, bar)


def _check_known(now: Job, listed: Takedown, found: list[dict[str, Any]]) -> None:
    for kind, names in (("ids", listed.ids), ("urls", listed.urls)):
        known = {name for unit in found for name in unit[kind]}
        unknown = [name for name in names if name not in known]
        if unknown:
            more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
            raise ValueError(
                f"takedown: {len(unknown)} of the {len(names)} {kind} of the list are in no "
                f"snapshot of {now.work}: {', '.join(unknown[:SHOWN])}{more}. Nothing was taken "
                f"down. Take them off the list; `gristmill why` tells whether a dataset has a "
                f"document."
            )


def _write_list(out: Path, whole: Takedown, reasons: Reasons) -> dict[str, Any]:
    """Writes what was taken down and why, in a form that is a list again."""
    documents = [{"id": name} | reasons[name] for name in sorted(reasons)]
    path = out / TAKEDOWN
    write_json(path, {"documents": documents, "urls": whole.urls, "texts": whole.texts})
    return file_entry(out, path, len(documents))
