import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """Returns a function (folder, texts of each file, source name) that writes a dataset."""
    return _write_dataset


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    """Real text, 1 to 2 MB: descriptions of the installed packages and source code of numpy."""
    packages = Path(sysconfig.get_paths()["purelib"])
    files = sorted(packages.glob("*.dist-info/METADATA"))[:60]
    files += sorted(packages.glob("numpy/lib/*.py")) + sorted(packages.glob("pyarrow/*.py"))
    return [file.read_bytes().decode(errors="replace") for file in files]


@pytest.fixture(scope="session")
def real_dataset(
    tmp_path_factory: pytest.TempPathFactory, real_texts: list[str]
) -> Path:
    """A curated dataset of the real texts in three files."""
    files = [real_texts[start::3] for start in range(3)]
    return _write_dataset(tmp_path_factory.mktemp("real") / "dataset", files, "real")


@pytest.fixture(scope="session", params=["bpe", "sentencepiece-bpe", "sentencepiece-unigram"])
def vocabulary(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_dataset: Path
) -> Vocabulary:
    """A trained vocabulary of each kind, 2,000 ids."""
    kind, _, model_type = request.param.partition("-")
    out = tmp_path_factory.mktemp("vocabulary") / request.param
    train_vocabulary(
        [real_dataset],
        out,
        kind=kind,
        size=2000,
        sample_bytes=300_000,
        model_type=model_type or "unigram",
    )
    return load_vocabulary(out)
