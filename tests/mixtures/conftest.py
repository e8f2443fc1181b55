import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixtures.artifact import file_entry as entry_of
from mixtures.artifact import fingerprint
from mixtures.indexed_dataset import write_index
from mixtures.layout import INDEX_FILE, MANIFEST, SIDECAR_FILE, SIDECAR_SCHEMA, TOKENS_FILE
from mixtures.vocabulary import Vocabulary, load_vocabulary
from mixtures.vocabulary_training import train_vocabulary
from pipelines.dataset import file_entry, write_json
from pipelines.document import document_ids


def _write_dataset(path: Path, files: Sequence[Sequence[str]], source: str = "test") -> Path:
    (path / "data").mkdir(parents=True)
    entries = []
    for number, texts in enumerate(files):
        name = f"{number:05d}.parquet"
        keys = [str(row) for row in range(len(texts))]
        table = pa.table(
            {
                "id": document_ids(source, [name] * len(texts), keys),
                "text": pa.array(texts, pa.string()),
                "source": pa.array([source] * len(texts), pa.string()),
            }
        )
        file = path / "data" / name
        pq.write_table(table, file, row_group_size=64)
        entries.append(file_entry(path, file, len(texts)))
    write_json(path / "manifest.json", {"recipe": {"fingerprint": source}, "files": entries})
    return path


def _write_tokens(path: Path, shards: Sequence[Sequence[int]], source: str = "test") -> Path:
    """Token k of a shard is shard * 10_000 + k + 3, so a token says where it stands."""
    path.mkdir(parents=True)
    described, files = [], []
    for number, lengths in enumerate(shards):
        length = np.array(lengths, np.int32)
        start = np.cumsum(length, dtype=np.int64) - length
        tokens = np.arange(length.sum(), dtype=np.int32) + number * 10_000 + 3
        tokens.tofile(path / TOKENS_FILE.format(number))
        write_index(path / INDEX_FILE.format(number), tokens.dtype, length)
        ids = document_ids(source, [str(number)] * len(length), list(map(str, range(len(length)))))
        sidecar = pa.table([ids, start, length, length.astype(np.int64) * 4], SIDECAR_SCHEMA)
        pq.write_table(sidecar, path / SIDECAR_FILE.format(number))
        described.append({"documents": len(length), "tokens": int(length.sum())})
        files += [
            entry_of(path, path / name.format(number))
            for name in (TOKENS_FILE, INDEX_FILE, SIDECAR_FILE)
        ]
    request = {"dataset": source, "vocabulary": "numbers"}
    manifest = {
        "request": request,
        "fingerprint": fingerprint([request, files]),
        "dtype": "int32",
        "vocabulary_size": 1 << 20,
        "end_of_document": 2,
        "documents": sum(shard["documents"] for shard in described),
        "shards": described,
        "files": files,
    }
    write_json(path / MANIFEST, manifest)
    return path


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """A function (folder, texts of each file, source name) that writes a curated dataset."""
    return _write_dataset


@pytest.fixture(scope="session")
def write_tokens() -> Callable[..., Path]:
    """A function (folder, document lengths of each shard, source name): a token dataset."""
    return _write_tokens


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    """Real text, about 1 MB: descriptions of the installed packages and source code of numpy."""
    packages = Path(sysconfig.get_paths()["purelib"])
    files = sorted(packages.glob("*.dist-info/METADATA"))[:60]
    files += sorted(packages.glob("numpy/lib/*.py"))
    return [file.read_bytes().decode(errors="replace") for file in files]


@pytest.fixture(scope="session")
def real_dataset(tmp_path_factory: pytest.TempPathFactory, real_texts: list[str]) -> Path:
    """A curated dataset of the real texts in three files."""
    files = [real_texts[start::3] for start in range(3)]
    return _write_dataset(tmp_path_factory.mktemp("real") / "dataset", files, "real")


KINDS = {
    "bpe": {"kind": "bpe"},
    "sentencepiece-bpe": {"kind": "sentencepiece", "model_type": "bpe"},
    "sentencepiece-unigram": {"kind": "sentencepiece", "model_type": "unigram"},
}


@pytest.fixture(scope="session", params=KINDS)
def vocabulary(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_dataset: Path
) -> Vocabulary:
    """A vocabulary of each kind, 2,000 ids, trained on 300 kB of the real dataset."""
    out = tmp_path_factory.mktemp("vocabulary") / request.param
    settings = KINDS[request.param]
    train_vocabulary([real_dataset], out, size=2000, sample_bytes=300_000, **settings)
    return load_vocabulary(out)


@pytest.fixture(scope="session")
def byte_vocabulary(tmp_path_factory: pytest.TempPathFactory, real_dataset: Path) -> Vocabulary:
    """A byte-level vocabulary of 1,000 ids."""
    out = tmp_path_factory.mktemp("vocabulary") / "bytes"
    train_vocabulary([real_dataset], out, size=1000, sample_bytes=200_000)
    return load_vocabulary(out)
