"""The columns of a run's files, worked out from recipe and readers before any data moves.

Data rows carry the reserved columns, what readers offer beside them and what plain steps add.
Signals of filters and editors go to the ledger, beside one boolean column for each rule
(`fails_<rule>`, null where it was not asked), so every verdict can be counted with one query.
"""

from dataclasses import dataclass

import pyarrow as pa

from pipelines.document import CONTENT, CONTENT_TYPE, ERROR, KEY, ORIGIN, RESERVED
from pipelines.global_step import DropStep, PairStep
from pipelines.plan import Plan
from pipelines.recipe import Recipe, check_schema
from pipelines.span_step import SpanStep
from pipelines.step import Editor, Filter

FAILS = "fails_"
CLUSTER_SIZE = "_cluster_size"
SKIPPED = "_skipped"
COMPONENT_ID = "_component_id"
COMPONENT_SIZE = "_component_size"
NO_TEXT = "no_text"
TAKEN_DOWN = "taken_down"
ERROR_RULE = "error_"

TRANSIENT = pa.schema([(CONTENT, pa.binary()), (CONTENT_TYPE, pa.string())])

LEDGER_START = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("origin", ORIGIN),
        ("url", pa.string()),
        ("error", pa.string()),
        ("text_bytes", pa.int64()),
        ("dropped_by", pa.string()),
    ]
)
LEDGER_MATCH = pa.schema([("matched_id", pa.string()), ("similarity", pa.float32())])


@dataclass(frozen=True)
class Layout:
    """The schemas of a run."""

    input: pa.Schema
    """What a batch has when the first step sees it, whichever reader it came from."""
    data: pa.Schema
    ledger: pa.Schema
    signals: pa.Schema
    rules: tuple[str, ...]
    """All rules of the recipe in order, those of global steps included."""

    @property
    def dropped(self) -> pa.Schema:
        """The schema of the dropped files: data and the rule that dropped."""
        return self.data.append(pa.field("dropped_by", pa.string()))


def make_layout(recipe: Recipe, plan: Plan) -> Layout:
    """Checks the recipe against one file of each reader and returns the layout.

    Raises:
        ValueError: a step reads a missing column or a column has a wrong type (`check_schema`), or
            two readers give a column two types.
    """
    extras: dict[str, pa.DataType] = {}
    for who, columns in _offered(recipe, plan).items():
        schema = pa.schema(list(columns.items()))
        check_schema(recipe, who, pa.unify_schemas([schema, *_padding(schema)]))
        for name, kind in columns.items():
            if name in (KEY, ERROR) or name in (*RESERVED.names, *TRANSIENT.names):
                continue
            if extras.setdefault(name, kind) != kind:
                raise ValueError(
                    f"{recipe.name}: column {name!r} is {kind} in {who} and {extras[name]} "
                    f"elsewhere. Leave it out, or give it one type."
                )
    start = pa.schema([*RESERVED, *TRANSIENT, *(pa.field(n, t) for n, t in extras.items())])
    data = pa.schema([*RESERVED, *(pa.field(n, t) for n, t in extras.items())])
    signals: dict[str, pa.Field] = {}
    for step in recipe.steps:
        for field in step.adds:
            if field.name == "text":
                continue
            if isinstance(step, Filter | Editor | SpanStep):
                signals[field.name] = field
            elif field.name not in data.names:
                data = data.append(field)
    rules = tuple(name for _, name in recipe.rule_names())
    ledger = list(LEDGER_START)
    if any(isinstance(step, DropStep) for step in recipe.steps):
        ledger += list(LEDGER_MATCH)
    ledger += list(signals.values())
    for step, name in recipe.rule_names():
        ledger.append(pa.field(FAILS + name, pa.bool_()))
        if isinstance(step, DropStep):
            ledger.append(pa.field(name + CLUSTER_SIZE, pa.int32()))
        if isinstance(step, PairStep):
            ledger.append(pa.field(name + SKIPPED, pa.int32()))
            ledger.append(pa.field(name + COMPONENT_ID, pa.string()))
            ledger.append(pa.field(name + COMPONENT_SIZE, pa.int32()))
    return Layout(start, data, pa.schema(ledger), pa.schema(list(signals.values())), rules)


def _offered(recipe: Recipe, plan: Plan) -> dict[str, dict[str, pa.DataType]]:
    """Returns the columns that the files of each source have, together; all files are asked."""
    offered: dict[str, dict[str, pa.DataType]] = {}
    for unit in plan.units:
        for span in unit.spans:
            if span.start:
                continue  # a later part of a file that was asked
            columns = offered.setdefault(f"source {unit.source}", {})
            for field in recipe.readers[unit.reader].schema(span.file):
                if columns.setdefault(field.name, field.type) != field.type:
                    raise ValueError(
                        f"{recipe.name}: column {field.name!r} is {field.type} in "
                        f"{span.file.path!r} and {columns[field.name]} in other files of source "
                        f"{unit.source}. Leave it out, or give it one type."
                    )
    return offered


def _padding(schema: pa.Schema) -> list[pa.Schema]:
    """The optional columns, which the engine fills with nulls; text only beside content."""
    optional = [f for f in (*RESERVED, *TRANSIENT) if f.name not in schema.names]
    if CONTENT not in schema.names:
        optional = [field for field in optional if field.name != "text"]
    return [pa.schema(optional)]
