import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.trial_data import chats, questions
from mixtures.mixture import Mixture, Part, mix
from mixtures.token_dataset import tokenize
from mixtures.vocabulary import load_vocabulary
from mixtures.vocabulary_training import train_vocabulary
from pipelines.dataset import file_entry, write_json
from pipelines.document import document_ids
from synth.phonebook_documents import phonebook_documents
from synth.problem_documents import problem_documents

LENGTH = 256


def write_dataset(path: Path, columns: dict) -> Path:
    (path / "data").mkdir(parents=True)
    file, number = path / "data" / "00000.parquet", len(columns["text"])
    ids = document_ids(path.name, ["00000"] * number, [str(n) for n in range(number)])
    pq.write_table(pa.table({"id": ids, **columns}), file)
    entries = [file_entry(path, file, number)]
    write_json(path / "manifest.json", {"recipe": {"fingerprint": path.name}, "files": entries})
    return path


@pytest.fixture(scope="session")
def trial_data(tmp_path_factory) -> Path:
    """A folder as `benchmarks.trial_data` makes it, with less text."""
    root = tmp_path_factory.mktemp("trials")
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-c]*.py"))
    texts = [file.read_text("utf-8") for file in files]
    texts = [text[i : i + 800] for text in texts for i in range(0, min(len(text), 8_000), 800)]
    talks = chats({"chain_sum": 60, "gcd": 20})
    columns = {
        "text": {"text": texts},
        "phonebook": {"text": [row["text"] for row in phonebook_documents(60, 0, (2, 6), 3)]},
        "problems": {"text": [row["text"] for row in problem_documents(100, 0)]},
        "chats": {name: talks[name] for name in talks.column_names},
    }
    datasets = {name: write_dataset(root / name, of) for name, of in columns.items()}
    read = [datasets[name] for name in ("text", "phonebook", "problems")]
    train_vocabulary(read, root / "vocabulary", size=512, sample_bytes=150_000)
    tokens = {name: root / "tokens" / name for name in datasets}
    for name, dataset in datasets.items():
        tokenize(dataset, root / "vocabulary", tokens[name], messages=name == "chats")
    weights = {
        "trial": {"text": 0.9, "phonebook": 0.1},
        "base": {"text": 0.5, "problems": 0.5},
        "chat-1": {"chats": 1.0},
    }
    for name, of in weights.items():
        parts = tuple(Part(part, weight, 50.0) for part, weight in of.items())
        mixture = Mixture(name, parts, LENGTH, num_samples=192, holdout_share=0.1, max_documents=16)
        chosen = {part: tokens[part] for part in of}
        mix(mixture, chosen, root / "mixtures" / name, seed=1)
    asked = questions(load_vocabulary(root / "vocabulary"), 4)
    (root / "questions.json").write_text(json.dumps(asked))
    return root
