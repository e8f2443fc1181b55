"""Writing a mixture's plan: which token ranges make each pack, and which documents are held out.

Three arrays that are mapped and never loaded: `locations` and `lengths` of pieces in the order of
their packs, and `packs`, the first piece of each pack and the end; 12 bytes a piece, 8 a pack. The
packs of the parts follow each other. Memory is a row group of a sidecar and two windows.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixtures.keyed import derive_key, hash_ids, share_threshold
from mixtures.layout import HOLDOUT, HOLDOUT_SCHEMA, LENGTHS, LOCATIONS, PACKS, SIDECAR_FILE
from mixtures.packing import Packer, cut
from mixtures.token_dataset import TokenDataset

if TYPE_CHECKING:
    from mixtures.mixture import Mixture


class ArrayWriter:
    """A one-dimensional .npy file that grows by appending."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._stream = path.open("wb")
        self._dtype = dtype
        self._length = 0
        self._write_header()

    def append(self, array: np.ndarray) -> None:
        """Adds values at the end."""
        self._stream.write(array.astype(self._dtype, copy=False).data)
        self._length += len(array)

    def close(self) -> None:
        """Writes the final length into the header, which numpy pads so that it never grows."""
        self._stream.seek(0)
        self._write_header()
        self._stream.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)


class PlanWriter:
    """The three arrays while they grow; the end of its `with` block closes them."""

    def __init__(self, folder: Path) -> None:
        (folder / LOCATIONS).parent.mkdir()
        self._locations = ArrayWriter(folder / LOCATIONS, np.dtype("<u8"))
        self._lengths = ArrayWriter(folder / LENGTHS, np.dtype("<i4"))
        self._packs = ArrayWriter(folder / PACKS, np.dtype("<i8"))
        self._packs.append(np.zeros(1, np.int64))
        self.num_pieces = 0
        self.num_packs = 0
        self.num_tokens = 0

    def emit(self, locations: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> None:
        """Adds packs; the arguments are those of `Packer`'s emit."""
        self._locations.append(locations)
        self._lengths.append(lengths)
        self._packs.append(self.num_pieces + np.cumsum(counts, dtype=np.int64))
        self.num_pieces += len(lengths)
        self.num_packs += len(counts)
        self.num_tokens += int(lengths.sum(dtype=np.int64))

    def __enter__(self) -> "PlanWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for array in (self._locations, self._lengths, self._packs):
            array.close()


def write_plan(
    mixture: "Mixture", datasets: list[TokenDataset], folder: Path
) -> list[dict[str, Any]]:
    """Packs every part into `folder` and returns what the manifest says of each.

    Raises:
        ValueError: a part has no document left to train on.
    """
    parts, held_out = [], []
    first_shard = 0
    with PlanWriter(folder) as writer:
        for part, dataset in zip(mixture.parts, datasets, strict=True):
            described, held = _write_part(mixture, dataset, part.name, first_shard, writer)
            parts.append(described)
            held_out.append(held)
            first_shard += dataset.num_shards
    table = pa.concat_tables(held_out).select(HOLDOUT_SCHEMA.names).cast(HOLDOUT_SCHEMA)
    pq.write_table(table, folder / HOLDOUT, compression="zstd")
    return parts


def _write_part(
    mixture: "Mixture", dataset: TokenDataset, name: str, first_shard: int, writer: PlanWriter
) -> tuple[dict[str, Any], pa.Table]:
    """Packs a part; returns its entry in the manifest and its held-out documents, shuffled."""
    first_pack, first_token = writer.num_packs, writer.num_tokens
    packer = Packer(mixture.sequence_length, mixture.max_documents, writer.emit)
    too_long: Counter[str] = Counter()
    masked = dataset.masked_documents.ranges
    held = pa.concat_tables(
        _pack_shard(mixture, dataset, shard, first_shard + shard, packer, too_long)
        for shard in range(dataset.num_shards)
    )
    packer.finish()
    packs, tokens = writer.num_packs - first_pack, writer.num_tokens - first_token
    if not packs:
        raise ValueError(
            f"{mixture.name}: part {name} has no document left to train on; {dataset.path} holds "
            f"{dataset.manifest['documents']:,}, {len(masked):,} of them masked, "
            f"holdout_share is {mixture.holdout_share}, "
            f"{too_long['documents']:,} are conversations of over {mixture.sequence_length + 1:,} "
            f"tokens"
        )
    held = held.sort_by([("hash", "ascending"), ("id", "ascending")])
    held = held.add_column(0, "part", pa.array([name] * len(held), pa.string()))
    described = {
        "name": name,
        "first_pack": first_pack,
        "packs": packs,
        "tokens": tokens,
        "efficiency": tokens / (packs * (mixture.sequence_length + 1)),
        "documents": dataset.manifest["documents"]
        - len(masked)
        - len(held)
        - too_long["documents"],
        "held_out": len(held),
        "token_dataset": dataset.fingerprint,
        "first_shard": first_shard,
        "shards": [shard["tokens"] for shard in dataset.manifest["shards"]],
    }
    if len(masked):
        tokens = int(masked.column("length").to_numpy().sum(dtype=np.int64))
        described["taken_down"] = {"documents": len(masked), "tokens": tokens}
    if dataset.masked:
        described |= {"masked": True, "too_long": {k: too_long[k] for k in ("documents", "tokens")}}
    return described, held


def _pack_shard(
    mixture: "Mixture",
    dataset: TokenDataset,
    shard: int,
    number: int,
    packer: Packer,
    too_long: Counter[str],
) -> pa.Table:
    """Gives a shard's documents to the packer; returns the held-out ones with their hashes.

    Conversations longer than a pack are in neither: half a conversation teaches to answer what was
    never asked. `too_long` counts them.
    """
    key = derive_key(mixture.holdout_seed, "holdout")
    threshold = share_threshold(mixture.holdout_share)
    held = []
    masked, _ = dataset.masked_documents.of_shard(shard)
    with pq.ParquetFile(dataset.path / SIDECAR_FILE.format(shard)) as sidecar:
        for batch in sidecar.iter_batches():
            if len(masked):
                batch = batch.filter(pa.array(~np.isin(batch.column("start").to_numpy(), masked)))
            if dataset.masked:
                batch = _whole(batch, mixture.sequence_length + 1, too_long)
            hashes = hash_ids(batch.column("id"), key)
            out = hashes < threshold
            starts = batch.column("start").to_numpy()[~out]
            lengths = batch.column("length").to_numpy()[~out]
            packer.add(*cut(starts, lengths, number, mixture.sequence_length))
            # bits per byte of an empty document mean nothing: it is left out of both
            out &= batch.column("bytes").to_numpy() > 0
            rows = batch.filter(pa.array(out))
            rows = rows.append_column("hash", pa.array(hashes[out]))
            held.append(rows.append_column("shard", pa.array([shard] * len(rows), pa.int32())))
        schema = sidecar.schema_arrow.append(pa.field("hash", pa.uint64()))
    return pa.Table.from_batches(held, schema.append(pa.field("shard", pa.int32())))


def _whole(batch: pa.RecordBatch, capacity: int, too_long: Counter[str]) -> pa.RecordBatch:
    """Returns the rows of documents that fit into a pack and counts the others."""
    lengths = batch.column("length").to_numpy()
    fits = lengths <= capacity
    too_long["documents"] += int(np.count_nonzero(~fits))
    too_long["tokens"] += int(lengths[~fits].sum(dtype=np.int64))
    return batch.filter(pa.array(fits))
