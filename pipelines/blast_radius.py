"""Stops a run that would drop more of a source, a language or a domain than the recipe allows.

Every group is judged, in one pass over the sums of pipelines.removal; what stays in memory is the
worst groups of each dimension, for the manifest, and the worst of those that exceed a limit.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.atomic import PREFIX
from pipelines.dataset import rows_with
from pipelines.engines.job import Job
from pipelines.global_step import DropStep
from pipelines.limits import ANY_RULE, DIMENSIONS, Limit
from pipelines.progress import say
from pipelines.removal import group_names, removal_file, whole_groups
from pipelines.statistics import KEPT
from pipelines.step import Filter

WORST = 20
"""Groups of each dimension in the manifest."""
JUDGED_FROM = 100
"""Smaller groups come after all others there: of one document all or nothing is dropped."""
EXCESSES = 6
"""Groups over a limit that a message names."""
EXAMPLES = 3
EXAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class Excess:
    """A group that exceeds a limit."""

    limit: Limit
    group: str
    documents: int
    """Those of which the share is taken."""
    dropped: int

    @property
    def share(self) -> float:
        """Of the documents."""
        return self.dropped / self.documents

    def __str__(self) -> str:
        share = _percent(self.dropped, self.documents)
        return f"{self.limit.by} {self.group} ({self.limit.rule}: {share})"


def check_removal(job: Job) -> dict[str, Any]:
    """Returns what the manifest says of removal, by dimension.

    `groups` and `documents` count all, `worst` are the WORST groups by the share of their documents
    that is dropped, groups of JUDGED_FROM documents and more first; ties by size and name. Each has
    `group`, `documents`, `dropped` and `rules` (documents dropped by each).

    Raises:
        RuntimeError: a group exceeds a limit of a rule or of the recipe; the message has examples.
    """
    limits = [*_limits_of_rules(job), *job.recipe.limits]
    radius = {by: {"groups": 0, "documents": 0, "worst": []} for by in DIMENSIONS}
    excesses: list[tuple[tuple[Any, ...], Excess]] = []
    number = 0
    paths = [removal_file(job, unit) for unit in job.own_units()]
    for counts in whole_groups(paths, job.plan_folder() / f"{PREFIX}removal"):
        sums = _Sums(counts, job.layout.rules)
        for by, found in radius.items():
            groups, documents, worst = sums.worst(by)
            found["groups"] += groups
            found["documents"] += documents
            found["worst"] = sorted([*found["worst"], *worst], key=_badness)[:WORST]
        for place, limit in enumerate(limits):
            over = [((place, -e.share, -e.documents, e.group), e) for e in sums.over(limit)]
            number += len(over)
            excesses = heapq.nsmallest(EXCESSES, [*excesses, *over], key=lambda pair: pair[0])
    if excesses:
        raise RuntimeError(_message(job, [excess for _, excess in excesses], number))
    for by in dict.fromkeys(limit.by for limit in job.recipe.limits):
        if not radius[by]["groups"]:
            column = "url" if by == "domain" else by
            say(f"warning: no document has a {column}, so the limits by {by} judge nothing")
    return radius


def examples(job: Job, rule: str, by: str = "", group: str = "") -> Iterator[str]:
    """Yields the first dropped documents of a rule, or of any rule, with their kept copies.

    Args:
        job: a job whose units are all written.
        rule: its name, or ANY_RULE.
        by: the dimension of the group; any document counts if none is given.
        group: only documents of this group.
    """
    rows = list(_first_dropped(job, rule, by, group))
    ids = [row["id"] for row in rows]
    ledger = {row["id"]: row for row in rows_with(_files(job, "ledger"), "id", ids)}
    matched = [match for row in ledger.values() if (match := row.get("matched_id"))]
    copies = {
        row["id"]: row
        for kind in ("dropped", "data")
        for row in rows_with(_files(job, kind), "id", matched, ["id", "origin", "text"])
    }
    for row in rows:
        yield f"  {_beginning(row)}"
        found = ledger[row["id"]]
        copy = copies.get(found.get("matched_id") or "")
        if copy:
            similarity = "" if found["similarity"] is None else f" ({found['similarity']:.3f})"
            yield f"    is like{similarity} {_beginning(copy)}"


class _Sums:
    """The rows of whole groups in the order of dimension, group and rule, as arrays."""

    def __init__(self, counts: pa.Table, rules: Sequence[str]) -> None:
        # a record that is an error or has no text reaches no rule
        asked = {rule: place for place, rule in enumerate((*rules, KEPT), 1)}
        place = pa.array([asked.get(rule, 0) for rule in counts["rule"].to_pylist()], pa.int64())
        table = counts.append_column("place", place)
        table = table.sort_by([(name, "ascending") for name in ("by", "group", "place", "rule")])
        self._by, self._group, self._rule, number = (
            table[name].combine_chunks() for name in ("by", "group", "rule", "documents")
        )
        self._number = number.to_numpy()
        fresh = np.ones(len(table), bool)
        fresh[1:] = pc.or_(*(pc.not_equal(c[1:], c[:-1]) for c in (self._by, self._group)))
        self._first = np.flatnonzero(fresh)
        self._sizes = np.diff(np.append(self._first, len(table)))
        kept = np.where(self._are(self._rule, KEPT), self._number, 0)
        self._total, self._kept = (self._of_groups(n) for n in (self._number, kept))

    def _of_groups(self, numbers: np.ndarray) -> np.ndarray:
        return np.add.reduceat(numbers, self._first) if len(numbers) else numbers

    def _are(self, names: pa.Array, name: str) -> np.ndarray:
        return pc.equal(names, name).to_numpy(zero_copy_only=False)

    def worst(self, by: str) -> tuple[int, int, list[dict[str, Any]]]:
        """Returns the number of groups of a dimension, of their documents, and the worst groups."""
        mine = np.flatnonzero(self._are(self._by.take(pa.array(self._first)), by))
        total = self._total[mine]
        share = (total - self._kept[mine]) / total
        order = np.lexsort((-total, -share, total < JUDGED_FROM))[:WORST]
        return len(mine), int(total.sum()), [self._described(group) for group in mine[order]]

    def over(self, limit: Limit) -> list[Excess]:
        """Returns the groups that exceed a limit."""
        if limit.rule == ANY_RULE:
            rows, documents = self._first, self._total
            dropped = self._total - self._kept
        else:
            rows = np.flatnonzero(self._are(self._rule, limit.rule))
            before = np.cumsum(self._number) - self._number
            start = np.repeat(before[self._first], self._sizes)
            reached = np.repeat(self._total, self._sizes) - (before - start)
            documents, dropped = reached[rows], self._number[rows]
        over = (dropped > limit.max_share * documents) & (documents >= limit.min_documents)
        over &= self._are(self._by.take(pa.array(rows)), limit.by)
        return [
            Excess(limit, self._group[int(rows[i])].as_py(), int(documents[i]), int(dropped[i]))
            for i in np.flatnonzero(over)
        ]

    def _described(self, group: int) -> dict[str, Any]:
        first, size = int(self._first[group]), int(self._sizes[group])
        rules = zip(
            self._rule[first : first + size].to_pylist(), self._number[first:], strict=False
        )
        return {
            "group": self._group[first].as_py(),
            "documents": int(self._total[group]),
            "dropped": int(self._total[group] - self._kept[group]),
            "rules": {rule: int(n) for rule, n in rules if rule != KEPT},
        }


def _badness(group: dict[str, Any]) -> tuple[Any, ...]:
    documents = group["documents"]
    share = group["dropped"] / documents
    return documents < JUDGED_FROM, -share, -documents, group["group"]


def _limits_of_rules(job: Job) -> Iterator[Limit]:
    for step in job.recipe.steps:
        if isinstance(step, Filter):
            yield from (Limit("source", rule.max_share, rule=rule.name) for rule in step.rules)
        elif isinstance(step, DropStep):
            yield Limit("source", step.max_share, rule=step.rule)


def _message(job: Job, excesses: Sequence[Excess], number: int) -> str:
    worst = excesses[0]
    limit = worst.limit
    who, those = f"rule {limit.rule}", " that reach it"
    if limit.rule == ANY_RULE:
        who, those = "the rules together", ""
    remedy = f"the max_share of Limit(by={limit.by!r}, rule={limit.rule!r}) in the recipe"
    if limit not in job.recipe.limits:
        remedy = "the rule's max_share"
    others = ""
    if number > 1:
        named = ", ".join(map(str, excesses[1:]))
        more = f" and {number - len(excesses)} more" if number > len(excesses) else ""
        others = f"Over their limits as well: {named}{more}.\n"
    return (
        f"{job.recipe.name}: {who} would drop {worst.dropped} of {worst.documents} documents of "
        f"{limit.by} {worst.group}{those} ({_percent(worst.dropped, worst.documents)}); the limit "
        f"is {100 * limit.max_share:g}%. Nothing is committed. If this is right, raise {remedy} "
        f"and run the same command again: only the checks are repeated.\n{others}Examples:\n"
        + "\n".join(examples(job, limit.rule, limit.by, worst.group))
    )


def _first_dropped(job: Job, rule: str, by: str, group: str) -> Iterator[dict[str, Any]]:
    left = EXAMPLES
    columns = ["id", "source", "language", "url", "dropped_by"]
    for path in _files(job, "dropped"):
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for part in range(file.num_row_groups):
                table = file.read_row_group(part, columns)
                mask = pc.is_valid(table["dropped_by"])
                if rule != ANY_RULE:
                    mask = pc.equal(table["dropped_by"], rule)
                if by:
                    within = pc.fill_null(pc.equal(group_names(table, by), group), False)
                    mask = pc.and_(mask, within)
                places = np.flatnonzero(mask)[:left]
                if len(places):
                    yield from file.read_row_group(part).take(pa.array(places)).to_pylist()
                left -= len(places)
                if not left:
                    return


def _files(job: Job, kind: str) -> list[Path]:
    return sorted((job.out / kind).glob("*.parquet"))


def _beginning(row: dict[str, Any]) -> str:
    text = "(its text is not kept)"
    if row["text"] is not None:
        text = " ".join(row["text"].split())[:EXAMPLE_CHARACTERS]
    return f"{row['id']} {row['origin']['path']}: {text}"


def _percent(part: int, whole: int) -> str:
    """Returns a percentage that is 100% only where it is exactly that."""
    return f"{min(100 * part / whole, 99.9 if part < whole else 100):.1f}%"
