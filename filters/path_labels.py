"""Weak labels from paths: what a file is called often says what it is good for.

Such labels cost nothing and are wrong for some documents. A classifier trained on them generalises
what the rules name; its held-out figures measure agreement with the rules, not with a reader.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters.fasttext_training import FastTextSettings
from filters.labelled import Columns
from filters.quality_training import MAX_BYTES, train_classifier
from pipelines.atomic import written
from pipelines.dataset import Dataset

COLUMNS = ("id", "origin", "text")
LABELS = pa.schema(
    [("id", pa.string()), ("group", pa.string()), ("label", pa.string()), ("text", pa.string())]
)


@dataclass(frozen=True)
class PathLabels:
    """Labels by regular expressions (RE2) that are searched in a document's path.

    Attributes:
        rules: (label, expression) pairs; the first that is found gives the label, and a path in
            which none is found gives none.
        positive: the labels that mean good.
        group: expression with one group named "group": documents whose group is equal stay on one
            side of the split between training and test.

    Raises:
        ValueError: `positive` names a label that no rule gives, or all of them.
    """

    rules: tuple[tuple[str, str], ...]
    positive: tuple[str, ...]
    group: str = r"^(?P<group>[^/]+)"

    def __post_init__(self) -> None:
        given = {label for label, _ in self.rules}
        if not set(self.positive) < given or not self.positive:
            raise ValueError(
                f"PathLabels: positive is {self.positive!r}; wanted some, but not all, of: "
                f"{', '.join(sorted(given))}"
            )

    def of(self, paths: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Returns label and group of each path; null where no rule or no group is found."""
        label = pa.nulls(len(paths), pa.string())
        for name, expression in reversed(self.rules):
            found = pc.fill_null(pc.match_substring_regex(paths, expression), False)
            label = pc.if_else(found, name, label)
        return label, pc.struct_field(pc.extract_regex(paths, self.group), "group")


def label_by_path(dataset: str, labels: PathLabels, out: str) -> dict[str, int]:
    """Writes the documents of a dataset that have a label as Parquet; returns how many have which.

    The file has the columns id, group, label and text; `unlabelled` counts the others.
    """
    counts = {label: 0 for label, _ in labels.rules} | {"unlabelled": 0}
    with written(Path(out)) as temporary, pq.ParquetWriter(temporary, LABELS) as writer:
        for batch in Dataset(dataset).batches("data", list(COLUMNS)):
            label, group = labels.of(pc.struct_field(batch.column("origin"), "path"))
            columns = [batch.column("id"), group, label, batch.column("text")]
            rows = pa.RecordBatch.from_arrays(columns, schema=LABELS)
            rows = rows.filter(pc.is_valid(label))
            counts["unlabelled"] += batch.num_rows - rows.num_rows
            for value in pc.value_counts(rows.column("label")).to_pylist():
                counts[value["values"]] += value["counts"]
            writer.write_batch(rows)
    return counts


def classify(
    dataset: str,
    labels: PathLabels,
    out: str,
    seed: int = 0,
    settings: FastTextSettings = FastTextSettings(),  # noqa: B008 - frozen
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Labels a dataset by its paths and trains a classifier on it: the flywheel's stage.

    The dataset itself is the reference that cuts the bins, so about 5 % of its text is in each.

    Args:
        dataset: a curated dataset, best a sample of what the classifier will see.
        labels: the rules.
        out: folder of the classifier; the labelled documents lie beside it as `<out>.parquet`.
        seed: of sample, split and training.
        settings: of fastText.
        max_bytes: text of each class, and of the reference, that is used at most.

    Returns:
        The classifier's manifest with `labels`, the number of documents of each.
    """
    labelled = f"{out.rstrip('/')}.parquet"
    counts = label_by_path(dataset, labels, labelled)
    manifest = train_classifier(
        out,
        documents=(labelled,),
        reference=(dataset,),
        columns=Columns(positive=labels.positive, group="group"),
        settings=settings,
        seed=seed,
        max_bytes=max_bytes,
    )
    return manifest | {"labels": counts}
