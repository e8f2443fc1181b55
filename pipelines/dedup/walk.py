"""The walk: candidates in the order of the keep policy, each kept or dropped by a kept one.

What comes out is the lexicographically first maximal independent set of the graph of similar pairs,
less the pairs that no key proposed: a document is dropped if and only if it is itself similar to
one that is kept, never through a chain.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup.link_kernels import find_roots, join_groups
from pipelines.dedup.walk_kernels import walk
from pipelines.document import id_strings
from pipelines.global_step import VERDICTS, Comparison

NO_LIMIT = 2**62


@dataclass(frozen=True)
class Candidates:
    """Documents that share keys, and the m times that one is in a group of equal keys.

    Attributes:
        place: uint64 (c, r), the order of the keep policy, compared column by column; the last two
            are the document's id.
        unit: int32 (c,), the work unit.
        row: int64 (c,), the place in the unit.
        member: int64 (m,), a number below c.
        group: int64 (m,), the group that it is in.
    """

    place: np.ndarray
    unit: np.ndarray
    row: np.ndarray
    member: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class Line:
    """Candidates as they are walked: component by component, in order.

    Attributes:
        unit: int32 (c,).
        row: int64 (c,).
        id: uint64 (c, 2).
        first: int64 (c,), where each document's component begins.
        member_offsets: int64 (c + 1,), where each document's groups lie in members.
        members: int64 (m,), groups, numbered from 0.
    """

    unit: np.ndarray
    row: np.ndarray
    id: np.ndarray
    first: np.ndarray
    member_offsets: np.ndarray
    members: np.ndarray


def lined_up(found: Candidates) -> Line:
    """Puts candidates, component by component, into the order in which they are walked."""
    n = len(found.row)
    by_group = np.argsort(found.group, kind="stable")
    starts = np.diff(found.group[by_group], prepend=-1) != 0
    roots = np.arange(n)
    join_groups(found.member[by_group], starts, roots)
    find_roots(roots)
    order = np.lexsort([*reversed(found.place.T), roots])
    position = np.empty(n, np.int64)
    position[order] = np.arange(n)
    member = position[found.member]
    _, group = np.unique(found.group, return_inverse=True)
    by_member = np.lexsort((group, member))
    offsets = np.searchsorted(member[by_member], np.arange(n + 1))
    ids = found.place[order, -2:]
    starts = np.diff(roots[order], prepend=-1) != 0
    first = np.maximum.accumulate(np.where(starts, np.arange(n), 0))
    return Line(found.unit[order], found.row[order], ids, first, offsets, group[by_member])


@dataclass(frozen=True)
class Walked:
    """What became of the documents of a line.

    Attributes:
        anchors: int64 (c,), the place in the line of the kept document that drops it, or -1.
        similarity: float64 (c,), to the anchor; 0 for a kept one.
        skipped: int32 (c,), kept documents that a kept one might have been compared with.
    """

    anchors: np.ndarray
    similarity: np.ndarray
    skipped: np.ndarray


def walk_line(
    line: Line,
    offsets: np.ndarray,
    values: np.ndarray,
    comparison: Comparison,
    budget: int = NO_LIMIT,
    pause: Callable[[], None] = lambda: None,
) -> Walked:
    """Walks a line.

    Args:
        line: whole components.
        offsets: int64 (c + 1,), where each document's set lies in values.
        values: uint64, ascending within a set.
        comparison: when documents are similar.
        budget: bytes of sets to read between two pauses.
        pause: called after each of them and at the end.
    """
    n = len(line.row)
    sizes = np.bincount(line.members)
    room = np.append(0, np.cumsum(np.minimum(sizes, comparison.max_anchors)))
    result = Walked(np.empty(n, np.int64), np.empty(n), np.empty(n, np.int32))
    kept = (room, np.empty(room[-1], np.int64), np.zeros(len(sizes), np.int64))
    scratch = (np.full(n, -1, np.int64), np.empty(n, np.int64))
    output = (result.anchors, result.similarity, result.skipped)
    groups = (line.member_offsets, line.members)
    place = 0
    while place < n:
        place = walk(
            place, budget, offsets, values, *groups, *kept, *scratch, tuple(comparison), *output
        )
        pause()
    return result


def verdicts(line: Line, walked: Walked) -> pa.Table:
    """Returns VERDICTS on all documents of components of two and more."""
    dropped = walked.anchors >= 0
    n = len(dropped)
    heads = np.where(dropped, walked.anchors, np.arange(n))
    size = np.bincount(heads, minlength=n)[heads]
    component_size = np.bincount(line.first, minlength=n)[line.first]
    named = np.flatnonzero(component_size > 1)
    gone = pa.array(dropped[named])
    none = pa.scalar(None)
    similarity = walked.similarity[named].astype(np.float32)
    columns = {
        "unit": line.unit[named],
        "row": line.row[named],
        "dropped": gone,
        "matched_id": pc.if_else(gone, id_strings(line.id[heads[named]]), none),
        "similarity": pc.if_else(gone, similarity, none),
        "cluster_size": size[named].astype(np.int32),
        "skipped": walked.skipped[named],
        "component_id": id_strings(line.id[line.first[named]]),
        "component_size": component_size[named].astype(np.int32),
    }
    return pa.table(columns, schema=VERDICTS)
