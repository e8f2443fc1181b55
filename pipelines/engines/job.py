"""What a stage needs to know of a run, and where its files are."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.global_step import GlobalStep
from pipelines.layout import Layout
from pipelines.plan import Plan
from pipelines.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """A recipe, a plan and the places to work in. It pickles."""

    recipe: Recipe
    plan: Plan
    layout: Layout
    out: Path
    work: Path
    """Folder of intermediate files; its name holds the identity of the run."""
    keep_dropped: str
    """Which texts of dropped documents are kept: all, sample or origin (none)."""
    sample: float
    """Share of the documents that the run sees."""

    def phase_folder(self, phase: int, unit: int) -> Path:
        """Where a mapped unit is. Phase 0 depends on the unit alone, later ones on the plan."""
        identity = self.plan.units[unit].identity()
        if phase == 0:
            return self.work / "units" / identity
        return self.plan_folder() / f"phase-{phase}" / identity

    def verdicts(self, phase: int) -> Path:
        """Where the verdicts of the global step that ends a phase are."""
        return self.plan_folder() / f"verdicts-{phase}"

    def links(self, phase: int) -> Path:
        """Where the candidates of the PairStep that ends a phase are."""
        return self.plan_folder() / f"links-{phase}"

    def sets(self, phase: int, unit: int) -> Path:
        """Where the sets of a unit's candidates are."""
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
