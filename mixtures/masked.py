"""Documents of a token dataset that have to go: token ranges that no sample may hold from now on.

`masked-00001.parquet` lists the ranges, `masked.json`, written last, says which file counts; the
token files stay the same bytes and nothing is tokenized again. Each further list makes a version
that holds all ranges so far, so a fingerprint says exactly what is left out. `mix` packs none of
them; a mixture that was packed before keeps its order, and its stream blanks them
(`mixtures.stream`). The tokens themselves lie in the .bin until the dataset is tokenized again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mixtures.artifact import exclusive, file_entry, fingerprint, read_manifest
from mixtures.layout import MANIFEST, MASKED, MASKED_FILE, MASKED_SCHEMA, SIDECAR_FILE
from pipelines.atomic import sweep, written
from pipelines.dataset import write_json

SHOWN = 3
"""Names that a message lists."""
CHILD = "#.*"
"""What the id of a split document's child has behind that of its parent."""


class Masked(NamedTuple):
    """What is masked in a token dataset."""

    fingerprints: tuple[str, ...]
    """Of the token dataset as each version leaves it, the present one last; empty without any."""
    ranges: pa.Table
    """MASKED_SCHEMA, in order of shard and start."""

    def of_shard(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns first tokens (int64, ascending) and lengths (int32) in a shard."""
        table = self.ranges.filter(pc.equal(self.ranges.column("shard"), shard))
        return table.column("start").to_numpy(), table.column("length").to_numpy()


def read_masked(folder: Path) -> Masked:
    """Returns what is masked in a token dataset.

    Raises:
        ValueError: the list of ranges is not there or not what was written.
    """
    about = _about(folder)
    if about is None:
        return Masked((), MASKED_SCHEMA.empty_table())
    path = folder / about["file"]["path"]
    if not path.is_file() or file_entry(folder, path) != about["file"]:
        raise ValueError(
            f"{path} is missing or damaged, and {folder / MASKED} says that it lists documents "
            f"that were taken down. Bring it back, or mask them again in a copy of the dataset."
        )
    return Masked(tuple(about["fingerprints"]), pq.read_table(path))


def mask(token_dataset: str | Path, ids: list[str], strict: bool = True) -> dict[str, Any]:
    """Masks documents of a token dataset and returns what is masked now.

    A killed run leaves the version before; the same list twice changes nothing.

    Args:
        token_dataset: its folder.
        ids: of the documents; the children of a split one go with it.
        strict: whether every id has to be there, or one.

    Returns:
        `version`, `documents` and `tokens` that are masked in all, `added` (documents of this
        call), `fingerprint` and `fingerprints` of the token dataset.

    Raises:
        ValueError: the folder is no token dataset, or does not hold what is listed. Nothing is
            changed then.
    """
    folder = Path(token_dataset)
    manifest = read_manifest(folder / MANIFEST, "token dataset")
    if "shards" not in manifest:
        raise ValueError(
            f"mask: {folder} is finished, and no token dataset. Give the folder that `gristmill "
            f"tokenize` wrote; documents of a dataset are taken down by `gristmill takedown`."
        )
    with exclusive(folder):
        sweep(folder)
        before, found = read_masked(folder), _find(folder, manifest, ids)
        _check_found(folder, found, ids, strict)
        known = set(_places(before.ranges))
        fresh = found.filter(pa.array([p not in known for p in _places(found)], pa.bool_()))
        if not len(fresh):
            about = _about(folder)
            assert about is not None  # something is masked: all that was found
            _remove_others(folder, about["file"]["path"])
            return about | {"added": 0}
        version = len(before.fingerprints) + 1
        numbers = pa.array(np.full(len(fresh), version, np.int32))
        fresh = fresh.add_column(0, "version", numbers).cast(MASKED_SCHEMA)
        order = [("shard", "ascending"), ("start", "ascending")]
        ranges = pa.concat_tables([before.ranges, fresh]).sort_by(order)
        path = folder / MASKED_FILE.format(version)
        with written(path) as temporary:
            pq.write_table(ranges, temporary, compression="zstd")
        mark = _fingerprint(manifest["fingerprint"], ranges)
        about = {
            "token_dataset": manifest["fingerprint"],
            "version": version,
            "fingerprint": mark,
            "fingerprints": [*before.fingerprints, mark],
            "documents": len(ranges),
            "tokens": pc.sum(pc.cast(ranges.column("length"), pa.int64())).as_py(),
            "file": file_entry(folder, path),
        }
        write_json(folder / MASKED, about)
        _remove_others(folder, path.name)
        return about | {"added": len(fresh)}


def _about(folder: Path) -> dict[str, Any] | None:
    path = folder / MASKED
    return json.loads(path.read_bytes()) if path.exists() else None


def _find(folder: Path, manifest: dict[str, Any], ids: list[str]) -> pa.Table:
    """Returns shard, id, start and length of the documents."""
    wanted, parts = pa.array(sorted(set(ids)), pa.string()), []
    for shard in range(len(manifest["shards"])):
        table = pq.read_table(
            folder / SIDECAR_FILE.format(shard), columns=["id", "start", "length"]
        )
        parents = pc.replace_substring_regex(table.column("id"), CHILD, "")
        table = table.filter(pc.is_in(parents, wanted))
        parts.append(table.add_column(0, "shard", pa.array([shard] * len(table), pa.int32())))
    return pa.concat_tables(parts)


def _places(ranges: pa.Table) -> list[tuple[int, int]]:
    shard, start = (ranges.column(name).to_pylist() for name in ("shard", "start"))
    return list(zip(shard, start, strict=True))


def _check_found(folder: Path, found: pa.Table, ids: list[str], strict: bool) -> None:
    there = set(pc.replace_substring_regex(found.column("id"), CHILD, "").to_pylist())
    absent = sorted(set(ids) - there)
    if absent and (strict or not there):
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        raise ValueError(
            f"mask: {len(absent)} of the {len(set(ids))} ids are in no shard of {folder}: "
            f"{', '.join(absent[:SHOWN])}{more}. Nothing was masked. Take them off the list, or "
            f"give the folder of a takedown, which may name documents that were dropped."
        )


def _fingerprint(base: str, ranges: pa.Table) -> str:
    """Returns a hash of a token dataset without some ranges; how they came about is no part."""
    digest = hashlib.sha256()
    for name in ("shard", "start", "length"):
        digest.update(ranges.column(name).to_numpy().tobytes())
    return fingerprint([base, "masked", digest.hexdigest()])


def _remove_others(folder: Path, name: str) -> None:
    """Removes the lists of earlier versions, which the present one includes."""
    for path in folder.glob("masked-*.parquet"):
        if path.name != name:
            path.unlink()
