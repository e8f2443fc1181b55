"""The data card: what the Hub and a reader need to know about a dataset, all from what it holds.

Counts, rules and steps come from the manifest; one pass over the published files adds rows, Arrow
bytes (what the Hub calls num_bytes), languages and licences. The card holds no time and no path of
this machine, so the same dataset gives the same card.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features
from datasets.info import DatasetInfo, DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import DatasetCardData

from flows.charts import funnel, parameters, precise, share
from pipelines.dataset import Dataset
from pipelines.inputs import INPUTS
from pipelines.layout import COMPONENT_ID, COMPONENT_SIZE, ERROR_RULE, FAILS
from pipelines.progress import human

TEMPLATE = "data_card.md.j2"
TEMPLATES = Path(__file__).parent / "templates"
CONFIGS = {"data": "documents", "ledger": "ledger", "dropped": "dropped"}
"""The name on the Hub of each kind of file."""
HOLDS = {
    "data": "the kept documents",
    "ledger": "a row for each input document: signals, verdicts, what dropped it",
    "dropped": "the dropped documents, with the rule that dropped each",
}
SIZES = ((1_000, "1K"), (10_000, "10K"), (100_000, "100K"), (1_000_000, "1M"))
SIZES += ((10_000_000, "10M"), (100_000_000, "100M"), (1_000_000_000, "1B"))
SIZES += ((10_000_000_000, "10B"), (100_000_000_000, "100B"), (1_000_000_000_000, "1T"))
SPDX_ENDINGS = ("-only", "-or-later", "+")
HUB_LICENCES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1
    lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 osl-3.0 pddl postgresql unlicense
    wtfpl zlib other unknown
    """.split()  # noqa: SIM905 - a list of 60 strings has 60 lines
)
"""What the Hub takes as `license`; other licences are "other" there."""
SPDX_NAMES = {"odc-by-1.0": "odc-by", "pddl-1.0": "pddl", "odbl-1.0": "odbl"}

MEANINGS = {
    "id": "128-bit hash of source name, path and record key, as 32 hexadecimal digits; the same in "
    "every run over the same input",
    "text": "the text",
    "source": "name of the source",
    "origin": "where the record lies: path below the source's root, byte offset and length "
    "(null where a record has no place of its own), BLAKE2b-128 of its bytes",
    "url": "address of the page, where the source has one",
    "date": "ISO 8601, where the source has one",
    "language": "ISO 639 code",
    "licence": "SPDX identifier, where the source has one",
    "parent_id": "the document that this one was cut from",
    "error": "why the record could not be read; null for a good one",
    "text_bytes": "size of the text in UTF-8",
    "dropped_by": "the rule that dropped the document; null for a kept one",
    "matched_id": "the kept document that a duplicate was compared with",
    "similarity": "verified similarity to it; 1.0 for equal texts",
}


LINKS = {
    COMPONENT_ID: ("string", "the first of all documents that candidate pairs link to this one"),
    COMPONENT_SIZE: ("int32", "how many these are; that they are linked drops none of them"),
}
"""Ends of a near-duplicate rule's columns -> type and meaning."""


@dataclass(frozen=True)
class Part:
    """One configuration of the published dataset: the files of one kind."""

    kind: str
    schema: pa.Schema
    rows: int
    num_bytes: int
    """Of the rows in Arrow memory."""
    files: int
    file_bytes: int

    @property
    def name(self) -> str:
        """Its name on the Hub."""
        return CONFIGS[self.kind]

    @property
    def holds(self) -> str:
        """What its rows are, in a few words."""
        return HOLDS[self.kind]


@dataclass(frozen=True)
class Survey:
    """What one pass over a dataset's files finds."""

    parts: tuple[Part, ...]
    languages: Mapping[str | None, int]
    """Kept documents by language; None where it is not known."""
    licences: Mapping[str | None, int]


def unseen(size: int) -> None:
    """The progress of a pass that nobody watches."""


def survey(
    dataset: Dataset, kinds: Sequence[str], advance: Callable[[int], None] = unseen
) -> Survey:
    """Reads the files of these kinds once, a row group at a time, `data` among them.

    Args:
        dataset: a curated dataset.
        kinds: data, ledger, dropped.
        advance: called with the Arrow bytes read since the last call.
    """
    counts = {"language": Counter[str | None](), "licence": Counter[str | None]()}
    parts = []
    for kind in kinds:
        rows = num_bytes = 0
        for batch in dataset.batches(kind):
            rows += batch.num_rows
            num_bytes += batch.nbytes
            advance(batch.nbytes)
            if kind == "data":
                for name, counter in counts.items():
                    for pair in pc.value_counts(batch.column(name)).to_pylist():
                        counter[pair["values"]] += pair["counts"]
        files = dataset.files(kind)
        size = sum(path.stat().st_size for path in files)
        parts.append(Part(kind, pq.read_schema(files[0]), rows, num_bytes, len(files), size))
    return Survey(tuple(parts), counts["language"], counts["licence"])


def make_card(dataset: Dataset, repo: str, found: Survey, licence: str = "") -> str:
    """Returns the card, README.md of the repository.

    Args:
        dataset: a curated dataset.
        repo: namespace/name on the Hub, for the examples.
        found: what `survey` found.
        licence: of the whole, as the publisher gives it; without it the documents' own.
    """
    manifest = dataset.manifest
    ledger = next((part for part in found.parts if part.kind == "ledger"), None)
    data = next(part for part in found.parts if part.kind == "data")
    entries = {entry["path"]: entry for entry in manifest["files"]}
    rules = [rule | {"anchor": ""} for rule in manifest["rules"]]
    rows = funnel(rules, manifest["documents_in"], manifest["bytes_in"], None)
    steps = {rule["name"]: rule["step"] for rule in rules}
    return _template().render(
        metadata=_metadata(repo, found, licence),
        title=repo.partition("/")[2],
        repo=repo,
        manifest=manifest,
        recipe=manifest["recipe"],
        parts=found.parts,
        ledger=ledger,
        funnel=[row | {"step": steps[row["name"]]} for row in rows],
        columns=_data_columns(manifest, data.schema),
        ledger_columns=_ledger_columns(manifest, ledger.schema) if ledger else [],
        languages=_ordered(found.languages),
        licences=_ordered(found.licences),
        licence=licence,
        limits=_limits(manifest, found),
        inputs=_inputs(dataset),
        inputs_sha256=entries[INPUTS]["sha256"],
    )


def hub_licence(name: str) -> str:
    """Returns the Hub's identifier of an SPDX licence, "other" where it has none."""
    short = name.strip().lower()
    for ending in SPDX_ENDINGS:
        short = short.removesuffix(ending)
    short = SPDX_NAMES.get(short, short)
    return short if short in HUB_LICENCES else "other"


def size_category(rows: int) -> str:
    """Returns the Hub's name for a number of rows, such as 10K<n<100K."""
    below = "n<1K"
    for (size, name), (_, above) in zip(SIZES, [*SIZES[1:], (0, "")], strict=True):
        if rows >= size:
            below = f"{name}<n<{above}" if above else f"n>{name}"
    return below


def _metadata(repo: str, found: Survey, licence: str) -> str:
    """Returns the YAML head of the card."""
    licences = {hub_licence(name) if name else "unknown" for name in found.licences}
    languages = sorted(code for code in found.languages if code and len(code) in (2, 3))
    infos = DatasetInfosDict()
    for part in found.parts:
        split = SplitInfo("train", num_bytes=part.num_bytes, num_examples=part.rows)
        infos[part.name] = DatasetInfo(
            features=Features.from_arrow_schema(part.schema),
            splits=SplitDict({"train": split}),
            download_size=part.file_bytes,
            dataset_size=part.num_bytes,
        )
    configs: list[dict[str, Any]] = []
    for part in found.parts:
        files = [{"split": "train", "path": f"{part.kind}/*.parquet"}]
        default = {"default": True} if part.kind == "data" else {}
        configs.append({"config_name": part.name} | default | {"data_files": files})
    card = DatasetCardData(
        pretty_name=repo.partition("/")[2],
        license=hub_licence(licence) if licence else sorted(licences),
        license_name=licence if licence and hub_licence(licence) == "other" else None,
        language=languages or None,
        task_categories=["text-generation"],
        size_categories=[size_category(found.parts[0].rows)],
        tags=["gristmill"],
        configs=configs,
    )
    infos.to_dataset_card_data(card)
    return card.to_yaml() + "\n"


def _data_columns(manifest: Mapping[str, Any], schema: pa.Schema) -> list[dict[str, str]]:
    columns = []
    for field in schema:
        meaning = MEANINGS.get(field.name, "as the reader or the source gives it")
        if field.name in manifest["signals"]:
            meaning += f", by {manifest['signals'][field.name]['step']}"
        columns.append({"name": field.name, "type": str(field.type), "meaning": meaning})
    return columns


def _ledger_columns(manifest: Mapping[str, Any], schema: pa.Schema) -> list[dict[str, str]]:
    """Returns the ledger's columns; the verdicts, one for each rule, share a row."""
    columns = []
    for field in schema:
        if field.name.startswith(FAILS) or field.name.endswith(("_cluster_size", *LINKS)):
            continue
        meaning = MEANINGS.get(field.name, "")
        if signal := manifest["signals"].get(field.name):
            text = "of the source" if signal["text"] == "source" else signal["text"]
            meaning = f"signal of {signal['step']}, seen in the text {text}"
        columns.append({"name": field.name, "type": str(field.type), "meaning": meaning})
    verdict = "whether the document broke the rule; null where it was not asked"
    columns.append({"name": f"{FAILS}RULE", "type": "bool", "meaning": verdict})
    if any(name.endswith("_cluster_size") for name in schema.names):
        size = "documents in the group of duplicates, the kept one included"
        columns.append({"name": "RULE_cluster_size", "type": "int32", "meaning": size})
    for end, (kind, meaning) in LINKS.items():
        if any(name.endswith(end) for name in schema.names):
            columns.append({"name": f"RULE{end}", "type": kind, "meaning": meaning})
    return columns


def _limits(manifest: Mapping[str, Any], found: Survey) -> list[str]:
    """Returns what a user has to know, sentence by sentence, each only where it is so."""
    recipe, rules = manifest["recipe"], manifest["rules"]
    limits = [
        "Only the steps above were applied. What none of them does (such as removing personal "
        "data, or the texts of benchmarks) was not done."
    ]
    if recipe["sample"] < 1:
        limits.append(f"A sample was looked at: {recipe['sample']:.4%} of the documents.")
    if unread := manifest["unread_files"]:
        limits.append(f"{unread:,} files of the sources were left out: no reader claims them.")
    errors = [rule for rule in rules if rule["name"].startswith(ERROR_RULE) and rule["dropped"]]
    if errors:
        kinds = ", ".join(f"{r['name'].removeprefix(ERROR_RULE)} {r['dropped']:,}" for r in errors)
        limits.append(f"Records that could not be read: {kinds}.")
    silent = [rule["name"] for rule in rules if not rule["dropped"] and "column" in rule]
    if silent:
        limits.append(f"Rules that dropped nothing: {', '.join(f'`{name}`' for name in silent)}.")
    if not any("column" not in rule and rule["step"] != "reader" for rule in rules):
        limits.append("No step compares documents with each other: duplicates are still in it.")
    if judge := manifest["signals"].get("language"):
        limits.append(f"Languages are what {judge['step']} took them for, not always right.")
    if unknown := found.licences.get(None, 0):
        limits.append(f"The licence of {unknown:,} of {manifest['kept']:,} documents is not known.")
    if "dropped" not in {part.kind for part in found.parts}:
        limits.append("The texts of dropped documents are not published.")
    elif recipe["keep_dropped"] != "all":
        share_kept = {"sample": "of 1% of", "origin": "of none of"}[recipe["keep_dropped"]]
        limits.append(f"The texts {share_kept} the dropped documents were kept.")
    return limits


def _inputs(dataset: Dataset) -> list[dict[str, Any]]:
    """Returns files and bytes read of each source."""
    table = pq.read_table(dataset.path / INPUTS, columns=["source", "path", "start", "stop"])
    spans = pc.subtract(table["stop"], table["start"])
    table = table.append_column("bytes", spans)
    groups = table.group_by("source").aggregate([("path", "count_distinct"), ("bytes", "sum")])
    rows = sorted(groups.to_pylist(), key=lambda row: row["source"])
    return [
        {"name": r["source"], "files": r["path_count_distinct"], "bytes": r["bytes_sum"]}
        for r in rows
    ]


def _ordered(counts: Mapping[str | None, int]) -> list[tuple[str | None, int]]:
    """Returns the most frequent first; nothing where no value is known."""
    if not any(value is not None for value in counts):
        return []
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0] or ""))


def _code(text: str) -> str:
    """Returns text as inline code of a Markdown table's cell."""
    one_line = " ".join(text.split()).replace("|", "\\|")
    if not one_line:
        return ""
    return f"`` {one_line} ``" if "`" in one_line else f"`{one_line}`"


def _template() -> jinja2.Template:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"number": "{:,}".format, "size": partial(human, unit="B")}
    templates.filters |= {"precise": precise, "code": _code}
    templates.filters["parameters"] = lambda step: parameters(step["parameters"])
    templates.globals["share"] = share
    return templates.get_template(TEMPLATE)
