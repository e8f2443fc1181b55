"""What the report says of the stages that close the wheel: classifier, traces, answers."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows.charts import funnel
from pipelines.dataset import MANIFEST, Dataset
from pipelines.explain import examples

SHOWN = 3
METRICS = "metrics.json"


def classifier_page(folder: Path) -> dict[str, Any]:
    """Returns held-out metrics of a quality classifier, and those of each label."""
    metrics = json.loads((folder / METRICS).read_text("utf-8"))
    labels = metrics.get("test_by_label", {}).items()
    return {
        "test": metrics["test"],
        "reliability": metrics["reliability"],
        "labels": [{"label": label} | row for label, row in labels],
    }


def traces_page(folder: Path) -> dict[str, Any]:
    """Returns what became of the generated answers, by rule and by family, with examples."""
    dataset = Dataset(folder)
    manifest = dataset.manifest
    rules = [
        rule | {"anchor": f"trace-rule-{number}", "question": None}
        for number, rule in enumerate(manifest["rules"])
    ]
    accepted = pq.read_table(dataset.files("data"), columns=["question", "generated"])
    return {
        "manifest": manifest,
        "rules": rules,
        "funnel": funnel(rules, manifest["documents_in"], manifest["bytes_in"], None),
        "families": manifest["sources"],
        "accepted": accepted.slice(0, SHOWN).to_pylist(),
        "rejected": [
            {"rule": rule["name"], "documents": examples(dataset, rule["name"], SHOWN)}
            for rule in rules
            if rule["dropped"]
        ],
    }


def answers_page(folder: Path) -> dict[str, Any]:
    """Returns the held-out answers before and after fine-tuning, for each family and together."""
    found = {
        path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))
    }
    rows = []
    names = sorted({name for result in found.values() for name in result["families"]})
    for name in [*names, "all families"]:
        row: dict[str, Any] = {"family": name}
        for when, result in found.items():
            row[when] = result["families"].get(name, result)
        rows.append(row)
    return {"rows": rows, "results": found}


PAGES = {
    "classifier": (METRICS, classifier_page),
    "traces": (MANIFEST, traces_page),
    "answers": ("after.json", answers_page),
}
"""For each stage the file that proves it is there, and what makes its part of the page."""
