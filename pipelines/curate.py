"""Runs a recipe over sources into a dataset.

Plan, check, map, group, write, count, commit. Whatever stops it before the manifest is written
leaves `.work/`, and the same command goes on from there.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipelines.without_pandas  # noqa: F401
from pipelines.atomic import sweep
from pipelines.blast_radius import check_removal
from pipelines.checks import check_counts
from pipelines.dataset import MANIFEST, WORK, Dataset, write_json
from pipelines.engines.engine import Engine
from pipelines.engines.job import Job
from pipelines.engines.local import LocalEngine
from pipelines.engines.stages import map_unit, warm_up, write_unit
from pipelines.inputs import changed_inputs, forget_changed_units
from pipelines.layout import make_layout
from pipelines.manifest import make_manifest
from pipelines.output_folder import check_output, locked
from pipelines.plan import Plan, make_plan
from pipelines.progress import progress, say
from pipelines.recipe import Recipe, Source, fingerprint
from pipelines.statistics import merged
from pipelines.step import Step

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

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; wanted 1 or more")
        if self.keep_dropped not in KEEP_DROPPED:
            raise ValueError(
                f"keep_dropped is {self.keep_dropped!r}; wanted one of: {', '.join(KEEP_DROPPED)}"
            )
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}; wanted one of: {', '.join(ENGINES)}")
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
    out = Path(out)
    sources = tuple(sources) or recipe.sources
    if not sources:
        raise ValueError(f"recipe {recipe.name} has no source of its own; give one with --source")
    identity = recipe.identity()
    identity |= {"keep_dropped": settings.keep_dropped, "sample": settings.sample}
    mark = fingerprint(identity)
    check_output(out, recipe.name, mark)
    say(f"curate {recipe.name}: listing {', '.join(source.root for source in sources)}")
    plan = make_plan(recipe.readers, sources)
    if (out / MANIFEST).is_file():
        return _reuse(out, plan, settings.verify)
    layout, work = make_layout(recipe, plan), out / WORK / mark[:32]
    job = Job(recipe, plan, layout, out, work, settings.keep_dropped, settings.sample)
    with locked(out):
        _sweep(job)
        if settings.verify:
            forget_changed_units(job)
        records = _run(job, settings)
        counts = merged(record["statistics"] for record in records)
        check_counts(job, records, counts)
        removal = check_removal(job)
        manifest = make_manifest(job, sources, identity, mark, records, counts)
        manifest["removal"] = removal
        for warning in manifest["warnings"]:
            say(f"warning: {warning}")
        write_json(out / MANIFEST, manifest)
        shutil.rmtree(out / WORK)
    return manifest


def _run(job: Job, settings: Settings) -> list[dict[str, Any]]:
    sizes = [unit.size for unit in job.plan.units]
    units = [(unit,) for unit in range(len(sizes))]
    with _engine(job, settings) as engine:
        engine.warm_up(warm_up)
        for phase, (steps, step) in enumerate(job.recipe.phases()):
            if step is None:
                break
            with progress(f"map ({_names(steps)})", job.plan.size, "B") as bar:
                items = [(phase, unit) for (unit,) in units]
                mapped = engine.each(map_unit, items, sizes, bar)
            engine.decide(phase, sum(record["keys"] for record in mapped))
        last, _ = job.recipe.phases()[-1]
        with progress(f"write ({_names(last)})", job.plan.size, "B") as bar:
            return engine.each(write_unit, units, sizes, bar)


def _engine(job: Job, settings: Settings) -> Engine:
    if settings.engine == "local":
        return LocalEngine(job, settings.workers, settings.memory)
    from pipelines.engines.spark import SparkEngine  # needs pyspark and Java

    return SparkEngine(job, settings.master)


def _names(steps: Sequence[Step]) -> str:
    return ", ".join(step.name for step in steps) or "no further steps"


def _reuse(out: Path, plan: Plan, verify: bool) -> dict[str, Any]:
    """Returns a finished dataset's manifest if its inputs are still those of the plan."""
    changed = changed_inputs(out, plan, verify)
    if changed:
        raise ValueError(
            f"{out} is finished, but its inputs have changed since: {changed}. "
            f"Give another --out, or remove the folder to make it again."
        )
    say(f"{out} is finished already, with the same recipe and inputs; nothing to do")
    return Dataset(out).manifest


def _sweep(job: Job) -> None:
    """Removes what killed runs left half-written and what belongs to inputs that have changed."""
    sweep(job.out)
    job.plan_folder().mkdir(parents=True, exist_ok=True)
    current = {job.plan_folder().name, "units"}
    for path in job.work.iterdir():
        if path.name not in current:
            shutil.rmtree(path)
    identities = {unit.identity() for unit in job.plan.units}
    for path in (job.work / "units").glob("*"):
        if path.name not in identities:
            shutil.rmtree(path)
    for kind in ("data", "ledger", "dropped"):
        for path in (job.out / kind).glob("*.parquet"):
            if not job.record(int(path.stem)).exists():
                path.unlink()
