"""Limits: how much of a source, a language or a domain a run may drop before it stops.

They only stop a run and change no byte of it, so they are no part of a recipe's fingerprint: after
a stop the same command with another limit goes on where it was, at the checks.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Dimension = Literal["source", "language", "domain"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
ANY_RULE = "any rule"


@dataclass(frozen=True)
class Limit:
    """The largest share of a group of documents that may be dropped.

    The share of one rule is that of the documents that reach it, which are those that no rule
    before it drops: what deduplication does to a domain shows also where a filter has dropped
    nine tenths of it. The share of any rule is that of all documents of the group.

    Groups are the values of the columns `source` and `language` and the hosts of `url` without
    "www."; a document without a value is in no group.

    Raises:
        ValueError: a parameter is out of its range.
    """

    by: Dimension
    max_share: float
    min_documents: int = 1_000
    """Groups of fewer documents (that reach the rule) are not judged."""
    rule: str = ANY_RULE

    def __post_init__(self) -> None:
        if self.by not in DIMENSIONS:
            raise ValueError(f"Limit: by is {self.by!r}; wanted one of: {', '.join(DIMENSIONS)}")
        if not 0 <= self.max_share <= 1:
            raise ValueError(f"Limit: max_share is {self.max_share}; wanted a share from 0 to 1")
        if self.min_documents < 1:
            raise ValueError(f"Limit: min_documents is {self.min_documents}; wanted 1 or more")
