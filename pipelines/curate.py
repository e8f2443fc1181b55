"""Runs a recipe over sources into a dataset.

Plan, check, map, group, write, count, commit. Whatever stops it before the manifest is written
leaves `.work/`, and the same command goes on from there.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pipelines.without_pandas  # noqa: F401
from pipelines.atomic import sweep
from pipelines.blast_radius import check_removal
from pipelines.checks import check_counts, check_cuts
from pipelines.dataset import MANIFEST, WORK, Dataset, write_json
from pipelines.engines.amend import KINDS, amend_unit
from pipelines.engines.engine import Engine
from pipelines.engines.job import Job
from pipelines.engines.local import LocalEngine
from pipelines.engines.stages import map_unit, warm_up, write_unit
from pipelines.global_step import GlobalStep
from pipelines.index import INDEX, Index
from pipelines.inputs import changed_inputs, forget_changed_units, inputs_of
from pipelines.layout import make_layout
from pipelines.manifest import make_manifest
from pipelines.output_folder import check_output, locked
from pipelines.plan import make_plan
from pipelines.progress import progress, say
from pipelines.readers.reader import SourceFile
from pipelines.recipe import Recipe, Source, fingerprint
from pipelines.statistics import merged
from pipelines.step import Step
from pipelines.takedown_list import Takedown, read_takedown

KEEP_DROPPED = ("all", "sample", "origin")
ENGINES = ("local", "spark")


@dataclass(frozen=True)
class Settings:
    """How to run, as against what to do: keep_dropped and sample alone change the output.

    Raises:
        ValueError: a setting is out of its range.
    """

    workers: int = os.cpu_count() or 1
    memory: int = 8 << 30
    """Bytes, proportional set size of all processes of the run."""
    verify: bool = False
    """Hash again what an earlier, unfinished or finished run has read."""
    keep_dropped: str = "all"
    sample: float = 1.0
    engine: str = "local"
    master: str = "local[*]"
    """Where Spark runs, as spark-submit takes it; for the Spark engine."""
    against: str = ""
    """Folder of an index of earlier snapshots; empty for a run by itself."""
    takedown: tuple[str, ...] = ()
    """Lists of documents that are to be dropped before all else; an index has its own."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; wanted 1 or more")
        if self.keep_dropped not in KEEP_DROPPED:
            raise ValueError(
                f"keep_dropped is {self.keep_dropped!r}; wanted one of: {', '.join(KEEP_DROPPED)}"
            )
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}; wanted one of: {', '.join(ENGINES)}")
        if self.takedown and self.against:
            raise ValueError(
                f"--takedown {self.takedown[0]} with --against {self.against}: an index remembers "
                f"what was taken down, and takes documents out of its snapshots by `gristmill "
                f"takedown RECIPE LIST --against {self.against}`"
            )
        if not 0 < self.sample <= 1:
            raise ValueError(f"sample is {self.sample}; wanted a share above 0 and up to 1")


def curate(
    recipe: Recipe, sources: Sequence[Source], out: str | Path, settings: Settings | None = None
) -> dict[str, Any]:
    """Runs the recipe and returns the manifest of the dataset at `out`.

    A finished dataset of the same recipe and inputs is returned as it is; an unfinished one is
    continued.

    Raises:
        ValueError: recipe and sources do not fit, or `out` holds something else.
        RuntimeError: a law does not hold: nothing to keep, a count that does not add up, a rule
            that would wipe out a source, a limit of the recipe. Nothing is committed.
        OSError: reading or writing failed; run again to continue.
    """
    settings = settings or Settings()
    _check_engine(recipe, settings.engine)
    out = Path(out)
    sources = tuple(sources) or recipe.sources
    if not sources:
        raise ValueError(f"recipe {recipe.name} has no source of its own; give one with --source")
    identity = recipe.identity()
    identity |= {"keep_dropped": settings.keep_dropped, "sample": settings.sample}
    mark = fingerprint(identity)
    check_output(out, recipe.name, mark)
    say(f"curate {recipe.name}: listing {', '.join(source.root for source in sources)}")
    index = _index(recipe, mark, settings.against)
    if (out / MANIFEST).is_file():
        return _reuse(recipe, sources, out, index, settings)
    plan = make_plan(recipe.readers, sources, index.knows if index else _nothing)
    layout = make_layout(recipe, plan)
    work = index.path if index else out / WORK / mark[:32]
    job = Job(recipe, plan, layout, out, work, settings.keep_dropped, settings.sample)
    if listed := _listed(settings):
        job = replace(job, plan=plan.under(listed.identity()), takedown=listed)
    with ExitStack() as locks:
        locks.enter_context(locked(out))
        if index:
            locks.enter_context(locked(index.path))
            job = index.extended(job)
        sweep_job(job)
        if settings.verify:
            forget_changed_units(job)
        records, amended = run_job(job, settings)
        counts = merged(record["statistics"] for record in records)
        check_counts(job, records, counts)
        check_cuts(job, counts)
        removal = check_removal(job)
        manifest = make_manifest(job, sources, identity, mark, records, counts, amended)
        manifest["removal"] = removal
        if job.takedown:
            manifest["takedown"] = job.takedown.identity()
        if index:
            manifest["against"] = index.account(job, manifest)
        for warning in manifest["warnings"]:
            say(f"warning: {warning}")
        write_json(out / MANIFEST, manifest)
        if index:
            index.commit(job, Dataset(out).identity, manifest)
        shutil.rmtree(out / WORK)
    return manifest


def _check_engine(recipe: Recipe, engine: str) -> None:
    for step in recipe.steps:
        if isinstance(step, GlobalStep) and engine not in step.engines:
            raise ValueError(
                f"recipe {recipe.name}: {step.name} does not run on the {engine} engine; "
                f"run it with --engine {step.engines[0]}"
            )


def _nothing(file: SourceFile) -> bool:
    return False


def _index(recipe: Recipe, mark: str, against: str) -> Index | None:
    if not against:
        return None
    if len(recipe.phases()) == 1:
        raise ValueError(
            f"recipe {recipe.name} looks at every document by itself, so snapshots do not touch "
            f"each other; run it without --against"
        )
    return Index(Path(against), recipe.name, mark)


def _listed(settings: Settings) -> Takedown:
    listed = Takedown()
    for path in settings.takedown:
        listed |= read_takedown(path)
    return listed


def run_job(job: Job, settings: Settings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the records of the job's own units, and of what is said of earlier ones."""
    sizes = [unit.size for unit in job.plan.units]
    with start_engine(job, settings) as engine:
        engine.warm_up(warm_up)
        for phase, (steps, step) in enumerate(job.recipe.phases()):
            if step is None:
                break
            with progress(f"map ({_names(steps)})", job.plan.size, "B") as bar:
                items = [(phase, unit) for unit in range(len(sizes))]
                mapped = engine.each(map_unit, items, sizes, bar)
            engine.decide(phase, sum(record["keys"] for record in mapped))
        last, _ = job.recipe.phases()[-1]
        own, earlier = job.own_units(), range(job.first)
        records: list[dict[str, Any]] = []
        if own:
            with progress(f"write ({_names(last)})", sum(sizes[job.first :]), "B") as bar:
                records = engine.each(write_unit, [(u,) for u in own], sizes[job.first :], bar)
        if not earlier:
            return records, []
        with progress("compare earlier snapshots", sum(sizes[: job.first]), "B") as bar:
            amended = engine.each(amend_unit, [(u,) for u in earlier], sizes[: job.first], bar)
    return records, amended


def start_engine(job: Job, settings: Settings) -> Engine:
    """Returns the engine of the settings, for a job."""
    if settings.engine == "local":
        return LocalEngine(job, settings.workers, settings.memory)
    from pipelines.engines.spark import SparkEngine  # needs pyspark and Java

    return SparkEngine(job, settings.master)


def _names(steps: Sequence[Step]) -> str:
    return ", ".join(step.name for step in steps) or "no further steps"


def _reuse(
    recipe: Recipe, sources: Sequence[Source], out: Path, index: Index | None, settings: Settings
) -> dict[str, Any]:
    """Returns a finished dataset's manifest if its inputs are still those of the sources."""
    held = Dataset(out)
    if ("against" in held.manifest) != (index is not None):
        was = "with" if "against" in held.manifest else "without"
        raise ValueError(f"{out} is finished, {was} --against. Give another --out.")
    listed = index.takedown if index else _listed(settings)
    taken_in = index is not None and index.has(held.identity)
    if held.manifest.get("takedown", "") != listed.identity() and not taken_in:
        raise ValueError(
            f"{out} is finished, with other takedown lists. Give another --out, or remove the "
            f"folder to make it again."
        )
    mine = {(row["source"], row["path"]) for row in inputs_of(out)}

    def earlier(file: SourceFile) -> bool:
        known = index is not None and index.knows(file)
        return known and (file.source, file.path) not in mine

    plan = make_plan(recipe.readers, sources, earlier)
    changed = changed_inputs(out, plan, settings.verify)
    if changed:
        raise ValueError(
            f"{out} is finished, but its inputs have changed since: {changed}. "
            f"Give another --out, or remove the folder to make it again."
        )
    if index and not taken_in:  # killed between the two commits
        layout = make_layout(recipe, plan)
        job = Job(recipe, plan, layout, out, index.path, settings.keep_dropped, settings.sample)
        with locked(index.path):
            index.commit(index.extended(job), held.identity, held.manifest)
    shutil.rmtree(out / WORK, ignore_errors=True)  # of a run that was killed after the commit
    say(f"{out} is finished already, with the same recipe and inputs; nothing to do")
    return held.manifest


def sweep_job(job: Job) -> None:
    """Removes what killed runs left half-written and what belongs to inputs that have changed."""
    sweep(job.out)
    job.plan_folder().mkdir(parents=True, exist_ok=True)
    current = {job.plan_folder().name, job.before().plan_folder().name}
    current |= {"units", "phases", WORK, INDEX}
    for path in job.work.iterdir():
        if path.name not in current:
            shutil.rmtree(path)
    identities = {unit.identity() for of in (job, job.before()) for unit in of.plan.units}
    for path in (job.work / "units").glob("*"):
        if path.name not in identities:
            shutil.rmtree(path)
    for kind in ("data", "ledger", "dropped", *KINDS):
        for path in (job.out / kind).glob("*.parquet"):
            if not job.record(int(path.stem)).exists():
                path.unlink()
