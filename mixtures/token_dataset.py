"""A token dataset: a curated dataset's documents as token ids, with the way back to each document.

Each data file becomes one shard, `tokens-00000.bin/.idx` (Megatron's indexed dataset, every
document ended by `</s>`) and `tokens-00000.parquet`, which says which document each token is of.
Documents keep their order; the `origin` of a document's row in the curated dataset leads to the
bytes of its source.

Conversations (a column `messages`) become `tokens-00000.mask`, too: a byte a token, 1 where a model
is trained to write it.
"""

import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixtures.artifact import (
    check_request,
    documents_fingerprint,
    exclusive,
    fingerprint,
    finished,
    read_manifest,
)
from mixtures.chat_template import CHAT_TEMPLATE, check_chat_ids
from mixtures.conversations import COLUMN, check_type
from mixtures.layout import MANIFEST, MASK_FILE, SIDECAR_FILE, TOKENS_FILE
from mixtures.masked import read_masked
from mixtures.token_shard import ShardTask, record_name, run_task, start_worker
from mixtures.vocabulary import load_vocabulary
from pipelines.atomic import sweep
from pipelines.dataset import Dataset, write_json

WORK = ".work"
_POLL_S = 0.2


def unseen(amount: int) -> None:
    """The progress of a run that nobody watches."""


def tokenize(
    dataset: str | Path,
    vocabulary: str | Path,
    out: str | Path,
    workers: int = 1,
    advance: Callable[[int], None] = unseen,
    where: Mapping[str, Sequence[str]] = MappingProxyType({}),
    sample: float = 1.0,
    messages: bool = False,
) -> dict[str, Any]:
    """Encodes a curated dataset into a token dataset and returns its manifest.

    A killed run goes on where it stopped: finished shards stay. The files are the same bytes with
    any number of workers. A finished `out` of the same dataset and vocabulary is taken as it is.

    Args:
        dataset: folder of a curated dataset.
        vocabulary: folder of a vocabulary.
        out: folder to write.
        workers: processes, one shard each at a time.
        advance: called with the bytes of text encoded since the last call.
        where: columns and the values that a document has to have in them; the others are left out.
        sample: share of these documents, drawn by keyed hash of the id.
        messages: encode conversations (`mixtures.conversations`) and not texts. Those that cannot
            be trained on are left out; the manifest's `dropped` counts them by verdict.

    Raises:
        ValueError: a folder is not what it should be, `where` names a column that is not there or
            no document has the values, there are no messages, or `out` holds another token dataset.
    """
    if workers < 1:
        raise ValueError(f"tokenize: workers is {workers}; wanted 1 or more")
    if not 0 < sample <= 1:
        raise ValueError(f"tokenize: sample is {sample}; wanted a share above 0 and up to 1")
    out, source = Path(out), Dataset(dataset)
    loaded = load_vocabulary(vocabulary)
    request = {
        "dataset": documents_fingerprint(source),
        "vocabulary": loaded.fingerprint,
        "where": {name: list(values) for name, values in where.items()},
        "sample": sample,
        "version": 1,
    }
    if messages:
        check_chat_ids(loaded.manifest["special_tokens"], f"tokenize: {vocabulary}")
        request["chat_template"] = fingerprint(CHAT_TEMPLATE)
    if there := finished(out / MANIFEST, "token dataset", request):
        shutil.rmtree(out / WORK, ignore_errors=True)  # killed after the manifest, before this
        return there
    data_files = _data_files(source)
    _check_columns(data_files, where)
    if messages:
        _check_messages(data_files)
    with exclusive(out):
        work = _begin(out, request)
        tasks = [
            ShardTask(
                number,
                str(file),
                str(loaded.path),
                str(out),
                str(work),
                request["where"],
                sample,
                messages,
            )
            for number, file in enumerate(data_files)
            if not (work / record_name(number)).exists()
        ]
        for number in range(len(data_files)):
            if (work / record_name(number)).exists():
                advance(json.loads((work / record_name(number)).read_bytes())["bytes"])
        _run(tasks, min(workers, len(tasks)), advance)
        records = [json.loads((work / record_name(n)).read_bytes()) for n in range(len(data_files))]
        if not any(record["documents"] for record in records):
            asked = f" with {request['where']}" if where else f" in a sample of {sample}"
            dropped = f"; dropped: {_dropped(records)}" if messages else ""
            raise ValueError(f"tokenize: {dataset} holds no documents{asked}{dropped}")
        files = [entry for record in records for entry in record.pop("files")]
        manifest = {
            "request": request,
            "fingerprint": fingerprint([request, files]),
            "dtype": loaded.dtype.name,
            "vocabulary_size": loaded.size,
            "end_of_document": loaded.eos_id,
            **{key: sum(r[key] for r in records) for key in ("documents", "tokens", "bytes")},
            "shards": records,
            "files": files,
        }
        if messages:
            manifest |= {"masked": True, "dropped": _dropped(records)}
        write_json(out / MANIFEST, manifest)
        shutil.rmtree(work)
        return manifest


def _data_files(dataset: Dataset) -> list[Path]:
    """Returns the data files, or raises ValueError if one is not as long as it was written."""
    sizes = {entry["path"]: entry["bytes"] for entry in dataset.manifest["files"]}
    files = dataset.data_files()
    for file in files:
        there, wanted = file.stat().st_size, sizes[file.relative_to(dataset.path).as_posix()]
        if there != wanted:
            raise ValueError(
                f"{file} has {there:,} bytes, the manifest says {wanted:,}: it is damaged. "
                f"Run the curate command again into another folder."
            )
    return files


def _check_columns(data_files: Sequence[Path], names: Iterable[str]) -> None:
    for file in data_files[:1]:
        there = pq.read_schema(file).names
        for name in names:
            if name not in there:
                raise ValueError(
                    f"tokenize: `where` names column {name!r}; columns here: {', '.join(there)}"
                )


def _check_messages(data_files: Sequence[Path]) -> None:
    for file in data_files[:1]:
        schema = pq.read_schema(file)
        if COLUMN not in schema.names:
            raise ValueError(
                f"tokenize: {file} has no column {COLUMN!r}; columns here: "
                f"{', '.join(schema.names)}. Tokenize texts, or make conversations in the recipe."
            )
        check_type(schema.field(COLUMN).type, str(file))


def _dropped(records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Returns how many conversations the shards dropped, by verdict."""
    counts = sum((Counter(record["dropped"]) for record in records), Counter[str]())
    return dict(sorted(counts.items()))


def _begin(out: Path, request: dict[str, Any]) -> Path:
    """Makes or takes up the folder of unfinished work and returns it."""
    work = out / WORK
    if not work.exists() and out.exists() and any(out.iterdir()):
        raise ValueError(
            f"{out} exists but holds no token dataset, whole or begun; it stays untouched. "
            f"Choose another folder or delete that one."
        )
    work.mkdir(parents=True, exist_ok=True)
    sweep(out)
    if (work / "request.json").exists():
        begun = json.loads((work / "request.json").read_bytes())
        check_request(out, "begun token dataset", begun, request)
    else:
        write_json(work / "request.json", request)
    return work


def _run(tasks: Sequence[ShardTask], workers: int, advance: Callable[[int], None]) -> None:
    """Runs tasks in worker processes; the first error ends all of them and is raised."""
    if not tasks:
        return
    context = multiprocessing.get_context("forkserver")
    progress, stop, seen = context.Value("q", 0), context.Event(), 0
    with ProcessPoolExecutor(workers, context, start_worker, (progress, stop)) as pool:
        pending = {pool.submit(run_task, task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, _POLL_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                now = progress.value
                advance(now - seen)
                seen = now
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class TokenDataset:
    """A finished token dataset on disk.

    Raises:
        ValueError: the folder is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path / MANIFEST, "token dataset")
        self.masked_documents = read_masked(self.path)
        """Those that were taken down since (`mixtures.masked`)."""
        self.fingerprint: str = [
            self.manifest["fingerprint"],
            *self.masked_documents.fingerprints,
        ][-1]
        self.dtype = np.dtype(self.manifest["dtype"])
        self.num_shards = len(self.manifest["shards"])
        self.masked: bool = self.manifest.get("masked", False)

    def tokens(self, shard: int) -> np.ndarray:
        """Returns the token ids of a shard, mapped and not read."""
        path = self.path / TOKENS_FILE.format(shard)
        if not self.manifest["shards"][shard]["tokens"]:
            return np.empty(0, self.dtype)
        return np.memmap(path, self.dtype, "r")

    def mask(self, shard: int) -> np.ndarray:
        """Returns for each token of a shard of conversations whether it is trained on, mapped."""
        if not self.manifest["shards"][shard]["tokens"]:
            return np.empty(0, np.bool_)
        return np.memmap(self.path / MASK_FILE.format(shard), np.bool_, "r")

    def sidecar(self, shard: int, columns: Sequence[str] = ("id", "start", "length")) -> pa.Table:
        """Returns columns of a shard's sidecar (`layout.SIDECAR_SCHEMA`), in order."""
        return pq.read_table(self.path / SIDECAR_FILE.format(shard), columns=list(columns))


def document_at(token_dataset: str | Path, shard: int, token: int) -> tuple[str, int]:
    """Returns the id of the document that a token is of, and the token's place in it.

    Raises:
        ValueError: there is no such shard or token.
    """
    dataset = TokenDataset(token_dataset)
    if not 0 <= shard < dataset.num_shards:
        raise ValueError(f"{token_dataset}: shard {shard} of {dataset.num_shards}")
    count = dataset.manifest["shards"][shard]["tokens"]
    if not 0 <= token < count:
        raise ValueError(f"{token_dataset}: token {token} of {count:,} in shard {shard}")
    sidecar = dataset.sidecar(shard, ("id", "start"))
    starts = sidecar.column("start").to_numpy()
    row = int(np.searchsorted(starts, token, "right")) - 1
    return sidecar.column("id")[row].as_py(), token - int(starts[row])
