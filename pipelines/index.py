"""An index of snapshots: with it a later run gives what one run over all of them would give.

It is a folder that holds, for one recipe, every work unit as it was mapped (documents, keys,
ledger), under names that are hashes of what the content depends on, and the verdicts of the last
run. A run against it maps its own units, decides global steps with the keys of all, and says of the
earlier documents what has changed. What an earlier unit becomes is worked out again only if a
verdict on one of its documents did change.

It remembers what has been taken down, so later snapshots stay clean of it, and holds no text of
that: a unit that loses documents is written again without them and the old one is removed.
"""

import base64
import json
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.atomic import written
from pipelines.engines.amend import KINDS
from pipelines.engines.job import Job
from pipelines.layout import Layout
from pipelines.plan import Plan, Unit
from pipelines.readers.reader import SourceFile, Span
from pipelines.takedown_list import Takedown

INDEX = "index.json"
FORMAT = 2


def read_index(path: Path) -> dict[str, Any]:
    """Returns what an index says of itself.

    Raises:
        ValueError: there is none, or one of another version.
    """
    file = path / INDEX
    if not file.is_file():
        raise ValueError(
            f"{path} is no index of snapshots. Give the folder that `gristmill curate` had as "
            f"--against."
        )
    found = json.loads(file.read_text("utf-8"))
    if found["format"] != FORMAT:
        raise ValueError(
            f"{path} is an index of format {found['format']}; this gristmill reads {FORMAT}. "
            f"Curate its snapshots again, against a new folder."
        )
    return found


class Index:
    """An index on disk, or an empty one where there is none yet.

    Attributes:
        path: its folder.
        units: of all snapshots, in the order in which they came.
        snapshots: of each: `dataset` (identity), `units`, `documents_in`, `kept`, and the sums over
            all snapshots up to it: `total_documents_in`, `total_kept`.
        takedown: what has been taken down.

    Raises:
        ValueError: the folder holds something else or an index of another recipe.
    """

    def __init__(self, path: Path, recipe: str, mark: str) -> None:
        self.path, self._recipe, self._mark = path, recipe, mark
        self.units: tuple[Unit, ...] = ()
        self.snapshots: list[dict[str, Any]] = []
        self.takedown = Takedown()
        self._columns: list[str] | None = None
        self._layout: dict[str, str] = {}
        self._files: dict[tuple[str, str], SourceFile] = {}
        file = path / INDEX
        if not file.is_file():
            if path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
                raise ValueError(
                    f"{path} exists and is no index. Give an empty or a new folder as --against."
                )
            return
        found = read_index(path)
        if found["fingerprint"] != mark:
            raise ValueError(
                f"{path} is an index of recipe {found['recipe']} with fingerprint "
                f"{found['fingerprint'][:12]}; this one is {recipe} with {mark[:12]}. Use the "
                f"recipe and settings of its snapshots, or give another --against."
            )
        self.units = tuple(_unit(row) for row in found["units"])
        self._files = {(s.file.source, s.file.path): s.file for u in self.units for s in u.spans}
        self.snapshots = found["snapshots"]
        self._columns = found["columns"]
        self._layout = found["layout"]
        self.takedown = Takedown(*(tuple(found["takedown"][f.name]) for f in fields(Takedown)))

    def identity(self) -> str:
        """Returns a hash of the units that the index holds."""
        return Plan(self.units, ()).identity()

    def knows(self, file: SourceFile) -> bool:
        """Says whether a file is in the index.

        Raises:
            ValueError: it is, but had another size or modification mark then.
        """
        old = self._files.get((file.source, file.path))
        if old is None:
            return False
        if (old.size, old.modified) != (file.size, file.modified):
            raise ValueError(
                f"{self.path}: {file.path!r} of source {file.source} is in the index and has "
                f"changed since ({old.size} bytes then, {file.size} now). Give the snapshot a "
                f"source name of its own: --source NAME=PATH."
            )
        return True

    def has(self, dataset: str) -> bool:
        """Says whether a dataset of this identity is one of the snapshots."""
        return any(snapshot["dataset"] == dataset for snapshot in self.snapshots)

    def _total(self, name: str) -> int:
        return self.snapshots[-1][name] if self.snapshots else 0

    def extended(self, job: Job) -> Job:
        """Returns a job of new units as one of all units.

        Raises:
            ValueError: there are no new units, or they have other columns than the earlier ones.
        """
        if not job.plan.units:
            raise ValueError(
                f"{self.path}: every file of the sources is in the index already. Give a source "
                f"with new files."
            )
        columns = _columns(job.layout)
        if self._columns is not None and columns != self._columns:
            differ = sorted(set(columns) ^ set(self._columns))
            raise ValueError(
                f"{self.path}: the snapshots in the index have other columns: {', '.join(differ)}. "
                f"Name the columns to carry in the reader."
            )
        new = job.plan.under(self.takedown.identity())
        plan = Plan((*self.units, *new.units), job.plan.unclaimed)
        return replace(job, plan=plan, first=len(self.units), takedown=self.takedown)

    def layout(self, rules: tuple[str, ...]) -> Layout:
        """Returns the layout of the snapshots, without a look at their sources.

        Args:
            rules: of the recipe.
        """
        names = [field.name for field in fields(Layout) if field.name != "rules"]
        buffers = {name: pa.py_buffer(base64.b64decode(self._layout[name])) for name in names}
        schemas = {name: pa.ipc.read_schema(buffer) for name, buffer in buffers.items()}
        return Layout(**schemas, rules=rules)

    def thinned(self, job: Job, takedown: Takedown, losing: set[int]) -> Job:
        """Returns a job that takes documents out of the snapshots.

        Args:
            job: of the snapshots as they are.
            takedown: all that has to go.
            losing: the units that lose a document.
        """
        units = (
            replace(unit, without=takedown.identity()) if number in losing else unit
            for number, unit in enumerate(self.units)
        )
        plan = Plan(tuple(units), ())
        return replace(job, plan=plan, first=len(plan.units), takedown=takedown, earlier=self.units)

    def account(self, job: Job, manifest: dict[str, Any]) -> dict[str, Any]:
        """Returns what the manifest of a run says of the earlier snapshots.

        `before` and `after` are identities of the units in the index; `retractions`, `revivals`,
        `redropped` and `amendments` count earlier documents; `total_...` are sums over all
        snapshots as they are now.
        """
        counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        for entry in manifest["files"]:
            kind = entry["path"].partition("/")[0]
            if kind in KINDS:
                counts[kind] += entry["rows"]
        kept = self._total("total_kept") - counts["retractions"] + counts["revivals"]
        return {
            "before": self.identity(),
            "after": job.plan.identity(),
            "snapshots": [snapshot["dataset"] for snapshot in self.snapshots],
            "total_documents_in": self._total("total_documents_in") + manifest["documents_in"],
            "total_kept": kept + manifest["kept"],
        } | counts

    def commit(self, job: Job, dataset: str, manifest: dict[str, Any]) -> None:
        """Takes a finished run in, atomically; doing it twice changes nothing.

        Args:
            job: the run.
            dataset: the identity of its dataset.
            manifest: of its dataset.
        """
        if self.has(dataset):
            return
        against = manifest["against"]
        snapshot = {"dataset": dataset, "units": len(job.own_units())}
        snapshot |= {name: manifest[name] for name in ("documents_in", "kept")}
        snapshot |= {name: against[name] for name in ("total_documents_in", "total_kept")}
        content = {
            "format": FORMAT,
            "recipe": self._recipe,
            "fingerprint": self._mark,
            "keep_dropped": job.keep_dropped,
            "sample": job.sample,
            "columns": _columns(job.layout),
            "layout": {
                field.name: base64.b64encode(getattr(job.layout, field.name).serialize()).decode()
                for field in fields(Layout)
                if field.name != "rules"
            },
            "takedown": asdict(job.takedown),
            "units": [asdict(unit) for unit in job.plan.units],
            "snapshots": [*self.snapshots, snapshot],
        }
        with written(self.path / INDEX) as temporary:  # file names may hold lone surrogates
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "ascii")
        self.sweep(job)

    def sweep(self, job: Job) -> None:
        """Removes what only earlier states needed, and with it the texts that were taken down.

        Args:
            job: of all units that the index holds.
        """
        for path in self.path.glob("plan-*"):
            if path != job.plan_folder():
                shutil.rmtree(path)
        for kind in ("links", "sets", "regions", "removal", "written"):
            for path in job.plan_folder().glob(f"{kind}*"):
                shutil.rmtree(path)
        last = len(job.recipe.phases()) - 1
        used = {
            job.address(phase, unit)
            for phase in range(1, last)
            for unit in range(len(job.plan.units))
        }
        for path in (self.path / "phases").glob("*"):
            if path.name not in used:
                shutil.rmtree(path)
        units = {unit.identity() for unit in job.plan.units}
        for path in (self.path / "units").glob("*"):
            if path.name not in units:
                shutil.rmtree(path)


def _columns(layout: Layout) -> list[str]:
    return [f"{field.name}: {field.type}" for field in (*layout.input, *layout.data)]


def _unit(row: dict[str, Any]) -> Unit:
    spans = (Span(SourceFile(**s["file"]), s["start"], s["stop"]) for s in row["spans"])
    return Unit(row["source"], row["reader"], tuple(spans), row["without"])
