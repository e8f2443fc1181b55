"""The report: one self-contained HTML page about a dataset, a training run or the whole flywheel.

The page has no script, loads nothing and holds no time and no path of its own, so the same folder
gives the same bytes wherever it lies; a page that follows a run is live_report's. Each part of it
is made by a function of its own (dataset_report, training_report, loop_report).
"""

import json
import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2

from flows.charts import duration, excerpt, parameters, precise, share, short
from flows.dataset_report import dataset_page
from flows.loop_report import PAGES
from flows.training_report import RUN, training_page
from pipelines.atomic import written
from pipelines.dataset import MANIFEST, WORK, Dataset
from pipelines.progress import human
from training_hook.metrics import FOLDER as METRICS

PAGE = "report.html"
WHEEL = "wheel.json"
PROOFS = {"dataset": MANIFEST, "mixture": MANIFEST, "training": METRICS, "sft": METRICS}
PROOFS |= {name: proof for name, (proof, _) in PAGES.items()}
"""What a folder holds once there is something to report about it."""
TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page and returns its path.

    Args:
        folder: a dataset, a training run, or a run folder of the flywheel with any of its stages.
        out: the page; without it `report.html` in the folder.

    Raises:
        ValueError: the folder is none of them.
    """
    folder = Path(folder)
    out = Path(out) if out is not None else folder / PAGE
    wheel, places = _places(folder)
    here = out.resolve().parent
    where = {
        name: Path(os.path.relpath(path.resolve(), here)).as_posix()
        for name, path in places.items()
    }
    page = _empty_page() | {"wheel": wheel, "where": where}
    if places.get("training") == folder:
        page["where"] = {}  # there is nothing but the folder of the page itself
    if "dataset" in places:
        page["dataset"] = dataset_page(Dataset(places["dataset"]), where["dataset"])
    if "mixture" in places:
        page["mixture"] = json.loads((places["mixture"] / MANIFEST).read_text("utf-8"))
    for name in ("training", "sft"):
        if name in places:
            page[name] = training_page(places[name])
    for name, (_, make) in PAGES.items():
        if name in places:
            page[name] = make(places[name])
    page["title"] = _title(page)
    with written(out) as temporary:
        temporary.write_text(render("report.html.j2", page), "utf-8")
    return out


def training_report(folder: Path) -> dict[str, Any]:
    """Returns what the templates need for the page of a training run alone."""
    page = _empty_page() | {"training": training_page(folder), "where": {}}
    return page | {"title": _title(page)}


def render(template: str, page: dict[str, Any]) -> str:
    """Returns a template filled with a page."""
    return _templates().get_template(template).render(page)


def _empty_page() -> dict[str, Any]:
    return dict.fromkeys((*PROOFS, "wheel", "live"))


def _title(page: dict[str, Any]) -> str:
    if page["wheel"]:
        return page["wheel"]["recipe"]
    if page["dataset"]:
        return page["dataset"]["manifest"]["recipe"]["name"]
    if page["mixture"]:
        return page["mixture"]["name"]
    return page["training"]["about"]["run"]["name"] if page["training"] else ""


def _places(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Path]]:
    """Returns what wheel.json says, if there is one, and the folders of what is there."""
    if (folder / MANIFEST).is_file() and (folder / "ledger").is_dir():
        return None, {"dataset": folder}
    if (folder / RUN).is_file():
        return None, {"training": folder}
    wheel, folders = None, {name: name for name in PROOFS}
    if (folder / WHEEL).is_file():
        wheel = json.loads((folder / WHEEL).read_text("utf-8"))
        folders = {}
        for name, path in wheel["folders"].items():
            parts = path.items() if isinstance(path, dict) else [("", path)]
            folders |= {f"{name} {part}".strip(): below for part, below in parts}
        wheel["absent"] = [name for name in folders if not _is_there(folder, name, folders[name])]
    places = {
        name: folder / path for name, path in folders.items() if _is_there(folder, name, path)
    }
    if not places:
        begun = ", only an unfinished run: run the same command again to finish it"
        raise ValueError(
            f"{folder} holds no finished dataset, training run or stage of the flywheel"
            + (begun if (folder / WORK).is_dir() else "")
            + ". Give the --out folder of curate, pretrain or flywheel."
        )
    return wheel, places


def _is_there(folder: Path, name: str, path: str) -> bool:
    return (folder / path / PROOFS.get(name, "")).exists()


@cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": "{:,}".format, "size": partial(human, unit="B")}
    templates.filters |= {"precise": precise, "compact": short, "share": share}
    templates.filters |= {"duration": duration, "parameters": parameters, "excerpt": excerpt}
    return templates
