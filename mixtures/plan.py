"""A resolved mixture on disk, opened for reading: order, packing plan and mapped tokens.

Nothing is loaded but the manifest and the sidecars that a question needs; opening 10^9 packs takes
as long as opening ten.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mixtures.artifact import read_manifest
from mixtures.layout import (
    HOLDOUT,
    LENGTHS,
    LOCATIONS,
    MANIFEST,
    MASK_FILE,
    PACKS,
    SIDECAR_FILE,
    TOKENS_FILE,
)
from mixtures.masked import Masked, read_masked
from mixtures.packing import CONTINUATION, START_BITS
from mixtures.schedule import Schedule, make_schedule

_START_MASK = np.uint64((1 << START_BITS) - 1)


class Plan:
    """A mixture's folder.

    Args:
        path: folder that `mix` wrote.
        token_datasets: folders of token datasets by part, for those that are no longer where they
            were, seen from the mixture, when it was made.

    Raises:
        ValueError: a folder is missing, unfinished or not the one that was mixed.
    """

    def __init__(
        self, path: str | Path, token_datasets: Mapping[str, str | Path] | None = None
    ) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path / MANIFEST, "mixture")
        self.fingerprint: str = self.manifest["fingerprint"]
        self.sequence_length: int = self.manifest["sequence_length"]
        self.max_documents: int = self.manifest["max_documents"]
        self.num_samples: int = self.manifest["num_samples"]
        self.dtype = np.dtype(self.manifest["dtype"])
        self.parts: list[dict] = self.manifest["parts"]
        opened = [
            self._token_dataset(part, (token_datasets or {}).get(part["name"]))
            for part in self.parts
        ]
        self.folders = [folder for folder, _ in opened]
        self._masked = [masked for _, masked in opened]
        self.schedule: Schedule = make_schedule(
            [phase["cycle"] for phase in self.manifest["phases"]],
            [phase["stop"] - phase["start"] for phase in self.manifest["phases"]],
            [part["packs"] for part in self.parts],
            [part["name"] for part in self.parts],
            self.manifest["seed"],
        )
        self.first_packs = np.array([part["first_pack"] for part in self.parts], np.int64)
        self.locations = self._map(LOCATIONS)
        self.lengths = self._map(LENGTHS)
        self.packs = self._map(PACKS)

    def _token_dataset(self, part: dict, given: str | Path | None) -> tuple[Path, Masked]:
        folder = Path(given) if given else self.path / self.manifest["paths"][part["name"]]
        found = read_manifest(folder / MANIFEST, "token dataset")["fingerprint"]
        masked = read_masked(folder)
        if part["token_dataset"] not in (found, *masked.fingerprints):
            raise ValueError(
                f"{folder} is not the token dataset that {self.path} was mixed from: its "
                f"fingerprint is {found[:12]}, part {part['name']} wants "
                f"{part['token_dataset'][:12]}. Mix again, or give the right folder."
            )
        return folder, masked

    @property
    def blanked(self) -> dict[str, str]:
        """Parts of which documents were masked since they were mixed: what is left, as a hash."""
        return {
            part["name"]: masked.fingerprints[-1]
            for part, masked in zip(self.parts, self._masked, strict=True)
            if masked.fingerprints and masked.fingerprints[-1] != part["token_dataset"]
        }

    def knows_blanked(self, blanked: Mapping[str, str]) -> bool:
        """Says whether all that was masked when `blanked` said so still is."""
        marks = {
            part["name"]: (part["token_dataset"], *masked.fingerprints)
            for part, masked in zip(self.parts, self._masked, strict=True)
        }
        return all(mark in marks.get(name, ()) for name, mark in blanked.items())

    def masked_ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns locations (uint64, ascending) and lengths (int64) of masked documents."""
        locations, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for part, masked in zip(self.parts, self._masked, strict=True):
            shards = masked.ranges.column("shard").to_numpy().astype(np.uint64)
            shards += np.uint64(part["first_shard"])
            starts = masked.ranges.column("start").to_numpy().astype(np.uint64)
            locations.append((shards << np.uint64(START_BITS)) | starts)
            lengths.append(masked.ranges.column("length").to_numpy().astype(np.int64))
        return np.concatenate(locations), np.concatenate(lengths)

    def masked_since(self, document_id: str) -> dict[str, tuple[str, ...]]:
        """Returns for each part that masks a document the hashes under which it is masked."""
        since = {}
        for part, masked in zip(self.parts, self._masked, strict=True):
            rows = masked.ranges.filter(pc.equal(masked.ranges.column("id"), document_id))
            if len(rows):
                first = pc.min(rows.column("version")).as_py()
                since[part["name"]] = masked.fingerprints[first - 1 :]
        return since

    def _map(self, name: str) -> np.ndarray:
        return np.load(self.path / name, mmap_mode="r").view(np.ndarray)

    def tokens(self) -> list[np.ndarray]:
        """Maps the tokens of all shards, in the order of the numbers that locations hold.

        Raises:
            ValueError: a file is not as long as it was.
        """
        return [
            _map_shard(folder / TOKENS_FILE.format(number), self.dtype, count)
            for part, folder in zip(self.parts, self.folders, strict=True)
            for number, count in enumerate(part["shards"])
        ]

    def masks(self) -> list[np.ndarray | None]:
        """Maps which tokens count as targets (bool), for all shards; None where all do.

        Raises:
            ValueError: a file is not as long as it was.
        """
        return [
            _map_shard(folder / MASK_FILE.format(number), np.dtype(np.bool_), count)
            if part.get("masked")
            else None
            for part, folder in zip(self.parts, self.folders, strict=True)
            for number, count in enumerate(part["shards"])
        ]

    def part_of_shard(self, shard: int) -> tuple[int, int]:
        """Returns the part that a shard belongs to and its number there."""
        firsts = [part["first_shard"] for part in self.parts]
        part = int(np.searchsorted(firsts, shard, "right")) - 1
        return part, shard - firsts[part]

    def sidecar(self, part: int, shard: int, columns: list[str]) -> pa.Table:
        """Returns columns of the sidecar of a part's shard."""
        return pq.read_table(self.folders[part] / SIDECAR_FILE.format(shard), columns=columns)

    def pieces(self, part: int, pack: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the shard, first token (both int64) and length of each piece of a pack."""
        number = self.first_packs[part] + pack
        rows = slice(self.packs[number], self.packs[number + 1])
        locations = self.locations[rows] & ~CONTINUATION
        shards = (locations >> np.uint64(START_BITS)).astype(np.int64)
        return shards, (locations & _START_MASK).astype(np.int64), self.lengths[rows]

    def held_out(self) -> pa.Table:
        """Returns the held-out documents (`mixtures.layout.HOLDOUT_SCHEMA`), shuffled."""
        return pq.read_table(self.path / HOLDOUT)


def _map_shard(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    if path.stat().st_size != count * dtype.itemsize:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, {count:,} tokens take "
            f"{count * dtype.itemsize:,}: it was changed after it was written"
        )
    mapped = np.memmap(path, dtype, "r") if count else np.empty(0, dtype)
    return mapped.view(np.ndarray)
