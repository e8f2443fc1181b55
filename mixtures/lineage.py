"""From a sample to its documents, and from a document to every sample that saw it.

Nothing was logged for this: the order is a permutation and is run backwards. A document that was
masked after it was mixed is still found: the plan says where it stood, and `seen` in which of these
samples a run was given its tokens before they were blanked. Asking for a document scans the ids of
the sidecars (about 20 million a second) and the plan's locations (1,000 million).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from mixtures.packing import CONTINUATION, START_BITS
from mixtures.plan import Plan


class DocumentRange(NamedTuple):
    """Tokens [start, stop) of a document."""

    part: str
    document_id: str
    start: int
    stop: int


def lineage(
    mixture: str | Path,
    sample_index: int,
    token_datasets: Mapping[str, str | Path] | None = None,
) -> list[DocumentRange]:
    """Returns the documents of a sample in the order in which they stand in it.

    The end-of-document token counts as a token of its document. A document id leads to the
    curated dataset's row and its `origin`.

    Raises:
        ValueError: the mixture has no such sample.
    """
    plan = Plan(mixture, token_datasets)
    if not 0 <= sample_index < plan.num_samples:
        raise ValueError(f"{mixture}: sample {sample_index} of {plan.num_samples:,}")
    parts, _, packs = plan.schedule.locate(np.array([sample_index]))
    found = []
    sidecars = {}
    for shard, first, length in zip(*plan.pieces(int(parts[0]), int(packs[0])), strict=True):
        part, number = plan.part_of_shard(int(shard))
        if number not in sidecars:
            table = plan.sidecar(part, number, ["id", "start"])
            sidecars[number] = table.column("id"), table.column("start").to_numpy()
        ids, starts = sidecars[number]
        row = int(np.searchsorted(starts, first, "right")) - 1
        begin = int(first - starts[row])
        name = plan.parts[part]["name"]
        found.append(DocumentRange(name, ids[row].as_py(), begin, begin + int(length)))
    return found


def samples_of(
    mixture: str | Path,
    document_id: str,
    before: int | None = None,
    token_datasets: Mapping[str, str | Path] | None = None,
) -> list[int]:
    """Returns the samples whose plan holds a token of a document, ascending.

    There are none if it is held out, or a conversation longer than a sample.

    Args:
        mixture: folder that `mix` wrote.
        document_id: the document's id.
        before: only samples below this index: those that a run has consumed.
        token_datasets: folders by part, for token datasets that were moved.

    Raises:
        ValueError: no part of the mixture has such a document.
    """
    plan = Plan(mixture, token_datasets)
    end = plan.num_samples if before is None else min(before, plan.num_samples)
    documents = _find(plan, document_id)
    if not documents:
        raise ValueError(f"{mixture}: no part has a document {document_id!r}")
    return sorted({index for _, index in _samples(plan, documents) if index < end})


def seen(
    mixture: str | Path,
    document_id: str,
    state: Mapping[str, Any],
    token_datasets: Mapping[str, str | Path] | None = None,
) -> list[int]:
    """Returns the samples of a mixture in which a run was given tokens of a document, ascending.

    Samples that were read after the document was masked are not among them: it was blank there.

    Args:
        mixture: folder that `mix` wrote.
        document_id: the document's id.
        state: of the run's stream, as a checkpoint has it (`Stream.state_dict`).
        token_datasets: folders by part, for token datasets that were moved.

    Raises:
        ValueError: no part of the mixture has such a document.
    """
    plan = Plan(mixture, token_datasets)
    documents = _find(plan, document_id)
    if not documents:
        raise ValueError(f"{mixture}: no part has a document {document_id!r}")
    since = plan.masked_since(document_id)
    begins = [int(index) for index, _ in state["history"]]
    ends = [*begins[1:], int(state["samples"])]
    spans = [
        (begin, end)
        for (_, mark), begin, end in zip(state["history"], begins, ends, strict=True)
        if mark == plan.fingerprint
    ]
    found = set()
    for part, index in _samples(plan, documents):
        name = plan.parts[part]["name"]
        for begin, end in spans:
            if begin + index >= end:
                continue
            marks = [parts for at, parts in state.get("blanked", ()) if at <= begin + index]
            if not marks or marks[-1].get(name) not in since.get(name, ()):
                found.add(index)
    return sorted(found)


def _samples(plan: Plan, documents: list[tuple[int, int, int, int]]) -> Iterator[tuple[int, int]]:
    """Yields part and index of every sample that was planned to hold one of the documents."""
    for part, shard, start, length in documents:
        for pack in _packs_of(plan, part, shard, start, length):
            epoch = 0
            # an epoch that ends before this draw has no more of them
            while (index := plan.schedule.index_of(part, epoch, pack)) >= 0:
                yield part, index
                epoch += 1


def _find(plan: Plan, document_id: str) -> list[tuple[int, int, int, int]]:
    """Returns (part, shard in the plan, first token, length) of each place a document stands at."""
    places = []
    for part, described in enumerate(plan.parts):
        for shard in range(len(described["shards"])):
            ids = plan.sidecar(part, shard, ["id"]).column("id")
            rows = pc.indices_nonzero(pc.equal(ids, document_id))
            if len(rows):
                table = plan.sidecar(part, shard, ["start", "length"]).take(rows)
                number = described["first_shard"] + shard
                for start, length in zip(*(c.to_pylist() for c in table.columns), strict=True):
                    places.append((part, number, start, length))
    return places


def _packs_of(plan: Plan, part: int, shard: int, start: int, length: int) -> list[int]:
    """Returns the packs (inside the part) that hold tokens of a document."""
    first = plan.parts[part]["first_pack"]
    begin = plan.packs[first]
    stop = plan.packs[first + plan.parts[part]["packs"]]
    locations = plan.locations[begin:stop] & ~CONTINUATION
    low = np.uint64((shard << START_BITS) + start)
    pieces = np.flatnonzero((locations >= low) & (locations < low + np.uint64(length))) + begin
    packs = np.searchsorted(plan.packs, pieces, "right") - 1 - first
    return sorted({int(pack) for pack in packs})
