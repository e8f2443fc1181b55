"""What a stage needs to know of a run, and where its files are."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from pipelines.engines.phase_files import unit_verdicts
from pipelines.global_step import GlobalStep, verdict_schema
from pipelines.layout import Layout
from pipelines.plan import Plan, Unit
from pipelines.recipe import Recipe
from pipelines.takedown_list import NOTHING, Takedown


@dataclass(frozen=True)
class Job:
    """A recipe, a plan and the places to work in. It pickles."""

    recipe: Recipe
    plan: Plan
    layout: Layout
    out: Path
    work: Path
    """Folder of intermediate files of this recipe: of the run, or an index."""
    keep_dropped: str
    """Which texts of dropped documents are kept: all, sample or origin (none)."""
    sample: float
    """Share of the documents that the run sees."""
    first: int = 0
    """The first unit that the run writes; earlier ones are of snapshots in the index."""
    takedown: Takedown = NOTHING
    """What has to go."""
    earlier: tuple[Unit, ...] | None = None
    """The earlier units as they were, if the run takes documents out of them."""

    @property
    def is_indexed(self) -> bool:
        """Whether later snapshots need the intermediate files, so that they stay."""
        return not self.work.is_relative_to(self.out)

    def own_units(self) -> range:
        """Returns the units that the run writes."""
        return range(self.first, len(self.plan.units))

    def before(self) -> "Job":
        """Returns the job of the snapshots in the index: the earlier units and their verdicts."""
        units = self.plan.units[: self.first] if self.earlier is None else self.earlier
        return replace(self, plan=replace(self.plan, units=units), earlier=None)

    def is_rewritten(self, unit: int) -> bool:
        """Says whether the run takes documents out of an earlier unit."""
        return self.earlier is not None and self.earlier[unit] != self.plan.units[unit]

    def phase_folder(self, phase: int, unit: int) -> Path:
        """Where a mapped unit is: its name says all that its content depends on.

        For phase 0 that is the unit, later also the verdicts on it, which have to be complete.
        """
        if phase == 0:
            return self.work / "units" / self.plan.units[unit].identity()
        return self.work / "phases" / self.address(phase, unit)

    def address(self, phase: int, unit: int) -> str:
        """Returns a hash of what a unit's content in a phase depends on."""
        return _address(self, phase, unit)

    def verdicts(self, phase: int) -> Path:
        """Where the verdicts of the global step that ends a phase are."""
        return self.plan_folder() / f"verdicts-{phase}"

    def links(self, phase: int) -> Path:
        """Where what a phase's PairStep links is, or its VectorStep's centroids."""
        return self.plan_folder() / f"links-{phase}"

    def regions(self, phase: int) -> Path:
        """Where what a WindowStep that ends a phase compares is."""
        return self.plan_folder() / f"regions-{phase}"

    def sets(self, phase: int, unit: int) -> Path:
        """Where the sets of a unit's candidates are, or its vectors."""
        return self.plan_folder() / f"sets-{phase}" / f"{unit:05d}"

    def global_step(self, phase: int) -> GlobalStep:
        """Returns the global step that ends a phase.

        Raises:
            ValueError: the phase is the last one, which ends in none.
        """
        step = self.recipe.phases()[phase][1]
        if step is None:
            raise ValueError(f"{self.recipe.name}: phase {phase} does not end in a global step")
        return step

    def record(self, unit: int) -> Path:
        """The file that says that a unit's final files are written, and what they hold."""
        return self.plan_folder() / "written" / f"{unit:05d}.json"

    def plan_folder(self) -> Path:
        """Where everything is that depends on all units."""
        return self.work / f"plan-{self.plan.identity()}"


def _address(job: Job, phase: int, unit: int) -> str:
    name = job.plan.units[unit].identity()
    for earlier in range(phase):
        schema = verdict_schema(job.global_step(earlier))
        name = _with_verdicts(name, job.verdicts(earlier), unit, schema)
    return name


@lru_cache(maxsize=100_000)
def _with_verdicts(name: str, folder: Path, unit: int, schema: pa.Schema) -> str:
    verdicts = unit_verdicts(folder, unit, schema).drop_columns(["unit"]).combine_chunks()
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, verdicts.schema) as writer:
        writer.write_table(verdicts)
    digest.update(sink.getvalue())
    return digest.hexdigest()
