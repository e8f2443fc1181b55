"""Held-out documents of a mixture: what no sample holds, for bits per byte."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixtures.packing import START_BITS
from mixtures.plan import Plan


@dataclass(frozen=True)
class HeldOut:
    """A document that was left out of training."""

    part: str
    document_id: str
    tokens: np.ndarray  # in the stored type, the end-of-document token included; mapped
    size_bytes: int  # of its text in UTF-8; of a conversation, what is trained on
    mask: np.ndarray | None = None  # bool, where a token is to be scored; None if all are


def held_out(
    mixture: str | Path,
    max_tokens: int,
    token_datasets: Mapping[str, str | Path] | None = None,
) -> Iterator[HeldOut]:
    """Yields held-out documents part by part, of each part until it has max_tokens.

    Their order is a keyed shuffle, so a beginning is a fair sample, and it is the same for every
    mixture with the same holdout_seed. The last document of a part comes whole. Documents that
    were masked since are left out.
    """
    plan = Plan(mixture, token_datasets)
    shards, masks = plan.tokens(), plan.masks()
    gone = set(plan.masked_ranges()[0].tolist())
    first_shards = {part["name"]: part["first_shard"] for part in plan.parts}
    taken: dict[str, int] = {}
    for row in plan.held_out().to_pylist():
        part, length = row["part"], row["length"]
        number = first_shards[part] + row["shard"]
        if taken.get(part, 0) >= max_tokens or (number << START_BITS) | row["start"] in gone:
            continue
        taken[part] = taken.get(part, 0) + length
        place = slice(row["start"], row["start"] + length)
        mask = masks[number]
        mask = None if mask is None else mask[place]
        yield HeldOut(part, row["id"], shards[number][place], row["bytes"], mask)
