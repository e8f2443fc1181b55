"""One shard of a token dataset: a data file's documents as .bin, .idx and a lineage sidecar.

A shard of conversations has a .mask besides: which of its tokens a model is trained to write. The
unit of work and of resuming: it depends on its data file and the vocabulary alone, and it is
done once its record is there. This module runs in worker processes.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mixtures import conversations
from mixtures.artifact import file_entry
from mixtures.chat_template import Segment
from mixtures.indexed_dataset import write_index
from mixtures.keyed import derive_key, hash_ids, share_threshold
from mixtures.layout import INDEX_FILE, MASK_FILE, SIDECAR_FILE, SIDECAR_SCHEMA, TOKENS_FILE
from mixtures.vocabulary import Vocabulary, load_vocabulary
from pipelines.atomic import written
from pipelines.dataset import write_json

BATCH_CHARACTERS = 1 << 20
"""Text encoded at once; ids and bookkeeping of tokenizers take about 100 bytes a character."""

SAMPLE_KEY = derive_key(0, "tokenize")

_progress: Any = None
_stop: Any = None


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to make a shard."""

    number: int
    data_file: str
    vocabulary: str
    out: str
    work: str
    where: dict[str, list[str]]
    """Columns and the values that a document has to have in them."""
    sample: float
    """Share of the documents, drawn by keyed hash of the id."""
    messages: bool = False
    """Whether documents are conversations (column `messages`) and not texts (column `text`)."""


class Documents(NamedTuple):
    """Documents of a shard that were encoded together, in order."""

    ids: list[str]
    tokens: list[np.ndarray]
    """Without the token that ends a document."""
    masks: list[np.ndarray] | None
    """uint8, 1 where a token is trained on; None if all are."""
    sizes: list[int]
    """Bytes in UTF-8, as in the sidecar."""


class Interrupted(Exception):
    """The run that asked for the shard is ending."""


def record_name(number: int) -> str:
    """Returns the name of the file that says that a shard is done."""
    return f"{number:05d}.json"


def start_worker(progress: Any, stop: Any) -> None:
    """Prepares a worker process: one thread, ends with its parent, leaves Ctrl-C to it.

    Args:
        progress: shared counter of encoded bytes.
        stop: shared event; once it is set, the shard in hand is given up.
    """
    global _progress, _stop
    _progress, _stop = progress, stop
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pa.set_cpu_count(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # killed without a chance to say so; our files are still under temporary names


def run_task(task: ShardTask) -> int:
    """Makes a shard and then its record; returns its number. Runs in a worker."""

    def advance(amount: int) -> None:
        if _stop.is_set():
            raise Interrupted
        with _progress.get_lock():
            _progress.value += amount

    record = make_shard(task, _vocabulary(task.vocabulary), advance)
    write_json(Path(task.work) / record_name(task.number), record)
    return task.number


_vocabulary = cache(load_vocabulary)


def make_shard(
    task: ShardTask, vocabulary: Vocabulary, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Writes the files of a shard and returns what the manifest says of it.

    Args:
        task: what to make.
        vocabulary: the loaded one of the task.
        advance: called with the bytes of text encoded since the last call; may raise to stop.
    """
    out = Path(task.out)
    tokens_file, index_file, sidecar_file, mask_file = (
        out / name.format(task.number)
        for name in (TOKENS_FILE, INDEX_FILE, SIDECAR_FILE, MASK_FILE)
    )
    ids, lengths, sizes = [], [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    dropped: Counter[str] = Counter()
    encoded = _conversations(task, vocabulary, dropped) if task.messages else None
    with ExitStack() as files:
        stream, masks = (
            files.enter_context(files.enter_context(written(file)).open("wb")) if wanted else None
            for file, wanted in ((tokens_file, True), (mask_file, task.messages))
        )
        assert stream is not None
        for documents in encoded or _texts(task, vocabulary):
            for document in documents.tokens:
                stream.write(document.data)
                stream.write(vocabulary.end_of_document)
            if masks is not None:
                for mask in documents.masks or ():
                    masks.write(mask.data)
                    masks.write(b"\0")  # the token that ends a document is not trained on
            lengths.append(np.array([len(t) + 1 for t in documents.tokens], np.int32))
            sizes.append(np.array(documents.sizes, np.int64))
            ids.extend(documents.ids)
            advance(sum(documents.sizes))
    length = np.concatenate(lengths)
    start = np.cumsum(length, dtype=np.int64) - length
    size = np.concatenate(sizes)
    with written(index_file) as temporary:
        write_index(temporary, vocabulary.dtype, length)
    with written(sidecar_file) as temporary:
        columns = [pa.array(ids, pa.string()), start, length, size]
        pq.write_table(pa.table(columns, schema=SIDECAR_SCHEMA), temporary, compression="zstd")
    made = [tokens_file, index_file, sidecar_file]
    record: dict[str, Any] = {
        "number": task.number,
        "documents": len(ids),
        "tokens": int(length.sum(dtype=np.int64)),
        "bytes": int(size.sum()),
    }
    if task.messages:
        made.append(mask_file)
        record["dropped"] = dict(sorted(dropped.items()))
    return {**record, "files": [file_entry(out, path) for path in made]}


def _texts(task: ShardTask, vocabulary: Vocabulary) -> Iterator[Documents]:
    """Yields texts of about BATCH_CHARACTERS, encoded, in order; a null text is empty."""
    texts: list[str] = []
    ids: list[str] = []
    characters = 0
    for document_id, value in _rows(task, "text"):
        texts.append(value or "")
        ids.append(document_id)
        characters += len(texts[-1])
        if characters >= BATCH_CHARACTERS:
            yield _encode(ids, texts, vocabulary)
            texts, ids, characters = [], [], 0
    if texts:
        yield _encode(ids, texts, vocabulary)


def _encode(ids: list[str], texts: list[str], vocabulary: Vocabulary) -> Documents:
    sizes = [len(text.encode()) for text in texts]
    return Documents(ids, vocabulary.encode_batch(texts), None, sizes)


def _conversations(
    task: ShardTask, vocabulary: Vocabulary, dropped: Counter[str]
) -> Iterator[Documents]:
    """Yields conversations as `_texts` does texts; counts in `dropped` what is none, by verdict."""
    rendered: list[list[Segment]] = []
    ids: list[str] = []
    characters = 0
    for document_id, messages in _rows(task, conversations.COLUMN):
        if why := conversations.verdict(messages):
            dropped[why] += 1
            continue
        rendered.append(conversations.render_for_training(messages))
        ids.append(document_id)
        characters += sum(len(segment.text) for segment in rendered[-1])
        if characters >= BATCH_CHARACTERS:
            yield _encode_conversations(ids, rendered, vocabulary)
            rendered, ids, characters = [], [], 0
    if rendered:
        yield _encode_conversations(ids, rendered, vocabulary)


def _encode_conversations(
    ids: list[str], rendered: list[list[Segment]], vocabulary: Vocabulary
) -> Documents:
    encoded = conversations.encode(rendered, vocabulary)
    tokens, masks, sizes = (list(column) for column in zip(*encoded, strict=True))
    return Documents(ids, tokens, masks, sizes)


def _rows(task: ShardTask, column: str) -> Iterator[tuple[str, Any]]:
    """Yields the id and a column's value of each document that the task wants, in order."""
    with pq.ParquetFile(task.data_file, pre_buffer=False) as file:
        for batch in file.iter_batches(1024, columns=["id", column, *task.where]):
            for name, values in task.where.items():
                wanted = pa.array(values, batch.schema.field(name).type)
                batch = batch.filter(pc.is_in(batch.column(name), wanted))
            if task.sample < 1:
                drawn = hash_ids(batch.column("id"), SAMPLE_KEY) < share_threshold(task.sample)
                batch = batch.filter(pa.array(drawn))
            for document_id, value in zip(batch.column("id"), batch.column(column), strict=True):
                yield document_id.as_py(), value.as_py()
