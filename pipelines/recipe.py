"""Recipes: what is to be done to every document, as data with a fingerprint.

A recipe is a Python function that returns `Recipe(name, readers, steps)`. The fingerprint covers
whatever can change a byte of the output; paths, engine, workers and memory stay out of it.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.document import ERROR, KEY, RESERVED
from pipelines.global_step import DropStep, GlobalStep
from pipelines.limits import ANY_RULE, Limit
from pipelines.readers.reader import Reader
from pipelines.step import Filter, Step

FORMAT = 3
"""Raised whenever the engine itself writes other bytes for the same recipe."""

TEXT_LIBRARIES = ("pyarrow", "numba")


@dataclass(frozen=True)
class Source:
    """A place where documents come from: a name that is identity and a root that is not."""

    name: str
    root: str  # a file, a folder, an fsspec URL or a Hugging Face dataset "namespace/name"
    files: str = ".*"
    """Regular expression that the path of a file below the root has to match."""


@dataclass(frozen=True)
class Recipe:
    """Readers and steps under a name.

    Raises:
        ValueError: two rules share a name, or nothing is there to read or to do.
    """

    name: str
    readers: tuple[Reader, ...]
    steps: tuple[Step, ...]
    sources: tuple[Source, ...] = ()
    """Where the recipe reads unless told otherwise; not part of the fingerprint."""
    must_fire: tuple[str, ...] = ()
    """Rules that have to drop something, or the run fails."""
    limits: tuple[Limit, ...] = ()
    """Beside each rule's max_share of a source; not part of the fingerprint."""

    def __post_init__(self) -> None:
        if not self.readers:
            raise ValueError(f"recipe {self.name}: no readers; give at least one")
        names = [rule for _, rule in self.rule_names()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"recipe {self.name}: two rules are called {name!r}; rename one")
        for name in self.must_fire:
            if name not in names:
                raise ValueError(
                    f"recipe {self.name}: must_fire names {name!r}; rules here: {', '.join(names)}"
                )
        for limit in self.limits:
            if limit.rule not in (ANY_RULE, *names):
                raise ValueError(
                    f"recipe {self.name}: a limit by {limit.by} names rule {limit.rule!r}; "
                    f"rules here: {', '.join(names)}. Without a rule it is that of any rule."
                )

    def rule_names(self) -> Iterator[tuple[Step, str]]:
        """Yields (step, rule name) in recipe order."""
        for step in self.steps:
            if isinstance(step, Filter):
                for rule in step.rules:
                    yield step, rule.name
            elif isinstance(step, DropStep):
                yield step, step.rule

    def phases(self) -> list[tuple[tuple[Step, ...], GlobalStep | None]]:
        """Returns the row-local steps up to each global step, and what follows the last one."""
        phases: list[tuple[tuple[Step, ...], GlobalStep | None]] = []
        local: list[Step] = []
        for step in self.steps:
            if isinstance(step, GlobalStep):
                phases.append((tuple(local), step))
                local = []
            else:
                local.append(step)
        phases.append((tuple(local), None))
        return phases

    def identity(self) -> dict[str, Any]:
        """Returns all that the output's bytes depend on beside the input, ready for JSON."""
        libraries: set[str] = set(TEXT_LIBRARIES)
        for part in (*self.readers, *self.steps):
            libraries.update(part.libraries)
        return {
            "name": self.name,
            "format": FORMAT,
            "readers": [_describe(reader) for reader in self.readers],
            "steps": [_describe(step) for step in self.steps],
            "libraries": {name: importlib.metadata.version(name) for name in sorted(libraries)},
        }


def fingerprint(identity: dict[str, Any]) -> str:
    """Returns the sha256 of an identity in canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(part: Step | Reader) -> dict[str, Any]:
    paths = part.paths if isinstance(part, Step) else ()
    described: dict[str, Any] = {"name": type(part).__name__, "version": part.version}
    described["parameters"] = {
        f.name: _plain(getattr(part, f.name)) for f in fields(part) if f.name not in paths
    }
    files: dict[str, str] = {}
    for name in paths:
        value = getattr(part, name)
        if isinstance(value, tuple):
            described["parameters"][name] = [file_set.identity() for file_set in value]
            for file_set in value:
                files |= {f"{name} {file}": sha for file, sha in file_set.sha256().items()}
        else:
            files[name] = _sha256(part, name, Path(value))
    if files:
        described["files"] = files
    facts = part.facts() if isinstance(part, Step) else {}
    return described | ({"facts": facts} if facts else {})


def _plain(value: Any) -> Any:
    """Returns a parameter as JSON holds it; any other object is its repr."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        parameters = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"name": type(value).__name__} | parameters
    return value if isinstance(value, (str, int, float, bool)) or value is None else repr(value)


def _sha256(part: Step | Reader, field: str, path: Path) -> str:
    if not path.is_file():
        raise ValueError(
            f"{type(part).__name__}: {field} is {str(path)!r}, which is not a file; "
            f"`make setup` fetches the models that gristmill uses, or give the path of your own"
        )
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_schema(recipe: Recipe, source: str, schema: pa.Schema) -> pa.Schema:
    """Follows the columns through the steps and returns those at the end, before any data moves.

    Args:
        recipe: the recipe.
        source: who offers the columns, for the message: "source web".
        schema: what a reader yields.

    Raises:
        ValueError: a step reads a column that is not there, a column has a reserved name and
            another type, or a step adds a column that exists.
    """
    types = {field.name: field.type for field in schema if field.name not in (KEY, ERROR)}
    types |= {name: RESERVED.field(name).type for name in ("id", "source")}
    for name, kind in types.items():
        if name in RESERVED.names and kind != RESERVED.field(name).type:
            raise ValueError(
                f"{recipe.name}: {source} has column {name!r} of type {kind}; "
                f"wanted {RESERVED.field(name).type}. Name another column in the reader."
            )
    for step in recipe.steps:
        for name in step.reads:
            if name not in types:
                raise ValueError(
                    f"{recipe.name}: {step.name} reads {name!r}; columns here: "
                    f"{', '.join(sorted(types))}. Put the step that adds {name!r} before it, "
                    f"or read a source that has it ({source})."
                )
        for field in step.adds:
            if field.name in types and field.name not in RESERVED.names:
                raise ValueError(
                    f"{recipe.name}: {step.name} adds {field.name!r}, which already exists. "
                    f"Leave one of the two steps out."
                )
            types[field.name] = field.type
        for name in step.consumes:
            types.pop(name, None)
    if "text" not in types:
        raise ValueError(
            f"{recipe.name}: no step makes 'text' of {source}; columns at the end: "
            f"{', '.join(sorted(types))}. Add HtmlText() or name a text column in the reader."
        )
    return pa.schema(list(types.items()))
