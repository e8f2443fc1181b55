"""datatrove's filters and formatters as steps of a recipe.

A step names a block and its arguments; the block itself is built in each process when it is first
needed. datatrove runs a block over a stream, and a block may remember what it saw. A step may not
(the split law), so every document here meets the block as it was after its first one, a fixed
probe: numbers and strings that a document changed are put back, and a block that collects, draws
at random or has a loop of its own is refused. Only this module and
pipelines.dedup.datatrove_signature import datatrove.
"""

import importlib
import json
import random
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.step import Editor, Filter, Rule

try:
    from datatrove.data import Document
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
    from datatrove.pipeline.formatters.base import BaseFormatter
except ImportError as error:
    raise ImportError(
        "datatrove is not installed, and DatatroveFilter and DatatroveFormatter run its blocks; "
        'install it with: pip install "gristmill[datatrove]"'
    ) from error

PROBE = "The first probe of this block is a short text. It has two sentences."
PROBE_TEXT_VALUE = "https://example.org/"
NO_REASON = "filtered"
"""The reason of a block that drops without giving one."""
SMALL = 64
"""Containers up to this size are compared by value, larger ones by length."""
PLAIN = (bool, int, float, str, bytes, type(None))
TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}

Arguments = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class DatatroveFilter(Filter):
    """Runs a datatrove filter on every document and drops those that it drops.

    Adds, for a block GopherQualityFilter, datatrove_gopher_quality_reason (string): null where the
    block keeps the document, else its reason, "filtered" where it gives none. What the block wrote
    into a document's metadata becomes a column where `outputs` names it, with null where it wrote
    nothing. A filter that edits (C4QualityFilter) edits here, too: text is what it left, also of a
    document that it dropped. A null text is not shown to the block: reason null, text null.

    Raises:
        ValueError: the block is no filter that judges single documents by themselves, or its
            arguments are not JSON; at the first call, it cannot be built with them.
        RuntimeError: the block failed on a document, or remembers documents.

    Source: github.com/huggingface/datatrove, pipeline/filters.
    """

    block: str
    """`module:Class`, for example datatrove.pipeline.filters:C4QualityFilter."""
    arguments: Arguments = ()
    """Names and JSON values of the block's arguments, lists as tuples."""
    metadata: tuple[str, ...] = ()
    """Columns that the block finds in a document's metadata, such as url."""
    outputs: tuple[tuple[str, str], ...] = ()
    """Metadata that the block writes and the type of its column, such as ("score", "float32")."""
    accepted: tuple[str, ...] = ()
    """Reasons that do not drop a document."""
    label: str = ""
    """Distinguishes two steps with one block: a part of column and rule names."""

    libraries = ("datatrove",)

    def __post_init__(self) -> None:
        check_block(self, BaseFilter)
        name = column_name(self.block, self.label)
        reason = f"{name}_reason"
        for key, kind in self.outputs:
            if kind not in TYPES:
                raise ValueError(
                    f"{self.name}: output {key!r} has type {kind!r}; wanted one of: "
                    f"{', '.join(TYPES)}"
                )
        added = [(f"{name}_{key}", TYPES[kind]) for key, kind in self.outputs]
        schema = pa.schema([("text", pa.string()), (reason, pa.string()), *added])
        object.__setattr__(self, "reads", read_columns(self.metadata))
        object.__setattr__(self, "adds", schema)
        rule = Rule(name, reason, "not in", "accepted", max_share=1.0)
        object.__setattr__(self, "rules", (rule,))

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the reason, the outputs and the text as the block left it."""
        built = load_block(self.block, self.arguments, probe_metadata(batch, self.metadata))
        reasons: list[str | None] = [None] * batch.num_rows
        texts: list[str | None] = [None] * batch.num_rows
        outputs: list[list[Any]] = [[None] * batch.num_rows for _ in self.outputs]
        for row, document in documents(batch, self.metadata):
            kept, reason = built.judge(document)
            reasons[row] = None if kept else str(reason or NO_REASON)
            texts[row] = document.text
            for values, (key, _) in zip(outputs, self.outputs, strict=True):
                values[row] = document.metadata.get(key)
        batch = with_text(batch, texts)
        for field, values in zip(list(self.adds)[1:], [reasons, *outputs], strict=True):
            batch = batch.append_column(field.name, pa.array(values, field.type))
        return batch


@dataclass(frozen=True)
class DatatroveFormatter(Editor):
    """Runs a datatrove formatter on every document.

    Adds, for a block PIIFormatter, datatrove_pii_changed (bool): whether it changed the text. A
    null text stays null and has null there. A block that takes replacements in turn starts anew
    with each document.

    Raises:
        ValueError: the block is no formatter that treats single documents by themselves, or its
            arguments are not JSON; at the first call, it cannot be built with them.
        RuntimeError: the block failed on a document, or remembers documents.

    Source: github.com/huggingface/datatrove, pipeline/formatters.
    """

    block: str
    """`module:Class`, for example datatrove.pipeline.formatters:PIIFormatter."""
    arguments: Arguments = ()
    """Names and JSON values of the block's arguments, lists as tuples."""
    label: str = ""
    """Distinguishes two steps with one block: a part of the column's name."""

    libraries = ("datatrove",)

    def __post_init__(self) -> None:
        check_block(self, BaseFormatter)
        name = column_name(self.block, self.label)
        schema = pa.schema([("text", pa.string()), (f"{name}_changed", pa.bool_())])
        object.__setattr__(self, "adds", schema)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the formatted text and whether it changed."""
        built = load_block(self.block, self.arguments, ())
        texts: list[str | None] = [None] * batch.num_rows
        changed: list[bool | None] = [None] * batch.num_rows
        for row, document in documents(batch, ()):
            texts[row] = built.format(document)
            changed[row] = texts[row] != document.text
        field = self.adds.field(1)
        return with_text(batch, texts).append_column(field.name, pa.array(changed, field.type))


class Built:
    """A block that meets every document in the same state."""

    def __init__(self, name: str, block: PipelineStep, metadata: tuple[tuple[str, Any], ...]):
        self._name, self._block = name, block
        if isinstance(block, BaseFilter):  # loads what the block loads late, such as word lists
            self._run(block.filter_batch, [Document(PROBE, "probe", metadata=dict(metadata))])
        elif isinstance(block, BaseFormatter):
            self._run(block.format, PROBE)
        self._state: dict[tuple[str, ...], tuple[Any, str | int, Any]] = {}
        self._state = self._look()

    def judge(self, document: Document) -> tuple[bool, str | None]:
        """Returns whether the block keeps a document, and its reason if not."""
        result = self._run(self._block.filter_batch, [document], document.id)[0]
        self._restore(document.id)
        kept, reason = get_filter_result(result)
        return bool(kept), reason

    def format(self, document: Document) -> str:
        """Returns the formatted text of a document."""
        text = self._run(self._block.format, document.text, document.id)
        self._restore(document.id)
        return text

    def _run(self, function: Any, argument: Any, document: str = "probe") -> Any:
        try:
            return function(argument)
        except Exception as error:
            raise RuntimeError(
                f"{self._name} failed on document {document}: {type(error).__name__}: {error}. "
                f"Drop such documents before it, by a rule and Cut()."
            ) from error

    def _look(self) -> dict[tuple[str, ...], tuple[Any, str | int, Any]]:
        """Returns path -> (holder, key, value) of the state that can be seen."""
        found: dict[tuple[str, ...], tuple[Any, str | int, Any]] = {}
        pending: list[tuple[tuple[str, ...], Any]] = [((), self._block)]
        seen: set[int] = set()
        homes = {"datatrove", home(self._block)}  # objects of other libraries are not looked into
        while pending:
            path, holder = pending.pop()
            if id(holder) in seen:
                continue
            seen.add(id(holder))
            for key, value in vars(holder).items():
                if not path and key == "stats":
                    continue  # counts that no decision reads
                place = (*path, key)
                if is_random(value):
                    raise ValueError(
                        f"{self._name} draws at random ({'.'.join(place)}), so what becomes of a "
                        f"document would depend on the documents before it. Use --sample, or a "
                        f"filter of our own that hashes the document's id."
                    )
                if isinstance(value, PLAIN):
                    found[place] = (holder, key, value)
                elif isinstance(value, (list, dict, set, bytearray)):
                    size = len(value)
                    found[place] = (holder, key, repr(value) if size <= SMALL else size)
                elif home(value) in homes and hasattr(value, "__dict__"):
                    pending.append((place, value))
        return found

    def _restore(self, document: str) -> None:
        """Puts back what a document changed, or refuses the block."""
        for place, (holder, key, value) in self._look().items():
            before = self._state.get(place)
            if before is None or before[2] == value:
                continue
            if isinstance(value, PLAIN) and isinstance(getattr(holder, str(key)), PLAIN):
                setattr(holder, str(key), before[2])
                continue
            raise RuntimeError(
                f"{self._name} collected something from document {document} "
                f"({'.'.join(place)}), so it cannot be a row-local step: its results would depend "
                f"on the batch. Run it in datatrove, or use our own dedup."
            )


@cache
def load_block(block: str, arguments: Arguments, metadata: tuple[tuple[str, Any], ...]) -> Built:
    """Builds a block, shows it the probe and remembers it for this process.

    Raises:
        ValueError: the block refuses its arguments, or draws at random.
        RuntimeError: it fails on the probe.
    """
    kind = find_block(block)
    try:
        built = kind(**dict(arguments))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{block} cannot be built with {dict(arguments)}: {error}") from error
    return Built(block, built, metadata)


def find_block(block: str) -> type:
    """Imports `module:Class` and returns the class.

    Raises:
        ValueError: there is no such class.
    """
    module, _, name = block.partition(":")
    if not name:
        raise ValueError(
            f"block {block!r}: wanted module:Class, for example "
            f"datatrove.pipeline.filters:C4QualityFilter"
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"block {block!r}: there is no module {error.name}") from error
    if not isinstance(found, type):
        raise ValueError(f"block {block!r}: {module} has no class {name}")
    return found


def check_block(step: Any, wanted: type) -> None:
    """Holds a block to what a row-local step may be.

    Raises:
        ValueError: it is of another kind, has a loop of its own, or its arguments are not JSON.
    """
    kind = find_block(step.block)
    if not issubclass(kind, wanted) or kind.run is not wanted.run:
        raise ValueError(
            f"{step.name}: {step.block} is no {wanted.__name__} that looks at one document at a "
            f"time (dedup, readers, writers and statistics are not); a step maps one row to one "
            f"row. Run it in datatrove, or use our own."
        )
    for name, value in step.arguments:
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f"{step.name}: parameter {name!r} of {step.block} is {value!r}, which JSON cannot "
                f"hold, so it could not be part of the recipe's fingerprint"
            ) from None


def column_name(block: str, label: str) -> str:
    """Returns datatrove_gopher_quality for ...:GopherQualityFilter, with the label behind it."""
    name = re.sub(r"(Filter|Formatter)$", "", block.rpartition(":")[2])
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return "_".join(filter(None, ["datatrove", words, label]))


def read_columns(metadata: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the columns of a document: its id, its text and its metadata."""
    return tuple(dict.fromkeys(["id", "text", *metadata]))


def home(value: Any) -> str:
    """Returns the top-level package of a value's type."""
    return type(value).__module__.partition(".")[0]


def is_random(value: Any) -> bool:
    """True for a random generator and for a method of one."""
    owner = getattr(value, "__self__", value)
    return isinstance(owner, (np.random.Generator, np.random.RandomState, random.Random))


def documents(batch: pa.RecordBatch, metadata: tuple[str, ...]) -> Any:
    """Yields (row, Document) for each row with a text."""
    ids = batch.column("id") if "id" in batch.schema.names else None
    columns = {name: batch.column(name).to_pylist() for name in metadata}
    for row, text in enumerate(batch.column("text").to_pylist()):
        if text is not None:
            given = {name: values[row] for name, values in columns.items()}
            name = str(ids[row].as_py() if ids is not None else row)
            yield row, Document(text, name, metadata=given)


def probe_metadata(batch: pa.RecordBatch, metadata: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """Returns values for the probe's metadata that depend on the columns' types alone."""
    kinds = {name: batch.schema.field(name).type for name in metadata}
    return tuple(
        (name, PROBE_TEXT_VALUE if pa.types.is_string(kind) else 0) for name, kind in kinds.items()
    )


def with_text(batch: pa.RecordBatch, texts: list[str | None]) -> pa.RecordBatch:
    """Returns the batch with another text column in the same place."""
    place = batch.schema.get_field_index("text")
    return batch.set_column(place, "text", pa.array(texts, pa.string()))
