"""What a peer would have decided on the same candidate pairs, from the ledger.

A peer drops all but one document of each component of candidate pairs and compares nothing. The
first document of a component is walked first and always kept, and nothing outside a component is
ever dropped, so law 5 drops a part of what the peer drops: the differences go one way only. Which
document of a component the peer keeps is its own affair (the first one of a file, the root of a
union-find); here it is the first by the keep policy, so the numbers are the peer's, and the names
are where it keeps the same one.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.layout import COMPONENT_ID, COMPONENT_SIZE, FAILS

EXAMPLES = 5


@dataclass
class SourceDecisions:
    """What became of one source's documents that the rule was asked of."""

    documents: int = 0
    dropped: int = 0
    """Near-duplicates of a kept document."""
    peer_only: int = 0
    """Kept, though the peer would have dropped them."""


@dataclass
class PeerDecisions:
    """What became of a dataset's documents, and what would have by components."""

    rule: str
    components: int = 0
    """Of two or more documents: each keeps one at the peer."""
    linked: int = 0
    """Documents in them."""
    largest: int = 0
    sources: dict[str, SourceDecisions] = field(default_factory=dict)
    examples: list[tuple[str, str]] = field(default_factory=list)
    """Kept here only, and the first document of its component: those with the smallest ids."""

    @property
    def dropped(self) -> int:
        """Documents that the rule dropped."""
        return sum(source.dropped for source in self.sources.values())

    @property
    def peer_only(self) -> int:
        """Documents that only the peer would have dropped."""
        return sum(source.peer_only for source in self.sources.values())


def decision_columns(rule: str) -> list[str]:
    """Returns the ledger's columns that `peer_decisions` reads."""
    return ["id", "source", FAILS + rule, rule + COMPONENT_ID, rule + COMPONENT_SIZE]


def peer_decisions(ledger: Iterable[pa.RecordBatch], rule: str) -> PeerDecisions:
    """Compares a rule's verdicts with those of a peer that drops by components.

    Args:
        ledger: batches with at least `decision_columns(rule)`.
        rule: of a PairStep, such as "near_duplicate".
    """
    result = PeerDecisions(rule)
    for batch in ledger:
        batch = batch.filter(pc.is_valid(batch.column(FAILS + rule)))
        component, size = batch.column(rule + COMPONENT_ID), batch.column(rule + COMPONENT_SIZE)
        dropped = batch.column(FAILS + rule)
        is_first = pc.fill_null(pc.equal(batch.column("id"), component), False)
        linked = pc.is_valid(component)
        peer_only = pc.and_(pc.and_(linked, pc.invert(is_first)), pc.invert(dropped))
        result.components += is_first.true_count
        result.linked += linked.true_count
        result.largest = max(result.largest, pc.max(size.filter(linked)).as_py() or 0)
        for name in pc.unique(batch.column("source")).to_pylist():
            of_source = pc.equal(batch.column("source"), name)
            source = result.sources.setdefault(name, SourceDecisions())
            source.documents += of_source.true_count
            source.dropped += pc.and_(of_source, dropped).true_count
            source.peer_only += pc.and_(of_source, peer_only).true_count
        found = batch.filter(peer_only)
        first = found.column(rule + COMPONENT_ID).to_pylist()
        pairs = zip(found.column("id").to_pylist(), first, strict=True)
        result.examples = heapq.nsmallest(EXAMPLES, [*result.examples, *pairs])
    return result
