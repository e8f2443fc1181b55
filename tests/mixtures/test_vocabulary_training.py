import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtures.artifact import documents_fingerprint
from mixtures.special_tokens import SPECIAL_TOKENS
from mixtures.vocabulary import Vocabulary, load_vocabulary
from mixtures.vocabulary_training import train_vocabulary
from pipelines.dataset import Dataset

TRAIN = """
import sys
from mixtures.vocabulary_training import train_vocabulary
dataset, out, kind, model_type = sys.argv[1:]
train_vocabulary([dataset], out, kind, 2000, sample_bytes=300_000, model_type=model_type)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_train_in_another_process_gives_the_same_bytes(
    vocabulary: Vocabulary, real_dataset: Path, tmp_path: Path
) -> None:
    request = vocabulary.manifest["request"]
    model_type = request["model_type"] if request["kind"] == "sentencepiece" else "unigram"
    out = tmp_path / "again"
    arguments = [str(real_dataset), str(out), request["kind"], model_type]
    subprocess.run([sys.executable, "-c", TRAIN, *arguments], check=True, cwd=Path.cwd())
    assert contents(out) == contents(vocabulary.path)


def test_train_with_another_seed_learns_from_other_documents(
    byte_vocabulary: Vocabulary, real_dataset: Path, tmp_path: Path
) -> None:
    train_vocabulary([real_dataset], tmp_path / "v", size=1000, sample_bytes=200_000, seed=1)
    assert load_vocabulary(tmp_path / "v").fingerprint != byte_vocabulary.fingerprint


def test_train_equal_request_takes_the_folder_as_it_is(
    byte_vocabulary: Vocabulary, real_dataset: Path
) -> None:
    before = (byte_vocabulary.path / "tokenizer.json").stat().st_mtime_ns
    manifest = train_vocabulary(
        [real_dataset], byte_vocabulary.path, size=1000, sample_bytes=200_000
    )
    assert manifest == byte_vocabulary.manifest
    assert (byte_vocabulary.path / "tokenizer.json").stat().st_mtime_ns == before


def test_train_other_request_is_refused(byte_vocabulary: Vocabulary, real_dataset: Path) -> None:
    with pytest.raises(ValueError, match="size is 1000 there and 1200 here"):
        train_vocabulary([real_dataset], byte_vocabulary.path, size=1200, sample_bytes=200_000)


def test_train_leaves_a_foreign_folder_untouched(real_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="stays untouched"):
        train_vocabulary([real_dataset], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("bpe", "unigram"), ("sentencepiece", "bpe"), ("sentencepiece", "unigram")],
)
def test_train_too_large_size_says_so_and_leaves_nothing(
    write_dataset: Callable[..., Path], tmp_path: Path, kind: str, model_type: str
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [["a few words only", "and no more"]])
    with pytest.raises(ValueError, match="train_vocabulary"):
        train_vocabulary([dataset], tmp_path / "out", kind, 5000, model_type=model_type)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_train_dataset_without_text_is_refused(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [["", None]])
    with pytest.raises(ValueError, match="hold no text"):
        train_vocabulary([dataset], tmp_path / "out")


@pytest.mark.parametrize(
    "setting",
    [{"kind": "wordpiece"}, {"kind": "sentencepiece", "model_type": "char"}, {"size": 256}],
)
def test_train_wrong_setting_is_refused(real_dataset: Path, tmp_path: Path, setting: dict) -> None:
    with pytest.raises(ValueError, match="wanted"):
        train_vocabulary([real_dataset], tmp_path / "out", **setting)


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("bpe", "unigram"), ("sentencepiece", "bpe"), ("sentencepiece", "unigram")],
)
def test_train_on_text_full_of_special_tokens_learns_none_of_them(
    write_dataset: Callable[..., Path],
    real_texts: list[str],
    tmp_path: Path,
    kind: str,
    model_type: str,
) -> None:
    spelt = " ".join(SPECIAL_TOKENS) + "".join(SPECIAL_TOKENS) + " <0x41><0x0A> \u2581x\ufdd0y"
    dataset = write_dataset(tmp_path / "dataset", [[spelt * 200, *real_texts[:20]]])
    train_vocabulary([dataset], tmp_path / "out", kind, 1000, model_type=model_type)
    vocabulary = load_vocabulary(tmp_path / "out")
    (ids,) = vocabulary.encode_batch([spelt])
    assert ids.min() >= len(SPECIAL_TOKENS)
    assert vocabulary.decode(ids) == spelt
    assert ids.tolist() == vocabulary.tokenizer.encode(spelt, add_special_tokens=False).ids


def test_documents_fingerprint_follows_the_documents(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    texts = [["one", "two"], ["three"]]
    marks = [
        documents_fingerprint(Dataset(write_dataset(tmp_path / name, files)))
        for name, files in (("a", texts), ("b", texts), ("c", [["one", "two"], ["four"]]))
    ]
    assert marks[0] == marks[1] != marks[2]
