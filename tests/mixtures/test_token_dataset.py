import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mixtures.artifact import exclusive
from mixtures.indexed_dataset import read_index
from mixtures.token_dataset import TokenDataset, document_at, tokenize
from mixtures.vocabulary import Vocabulary
from pipelines.dataset import Dataset

TOKENIZE = """
import sys
from mixtures.token_dataset import tokenize
if __name__ == "__main__":
    tokenize(*sys.argv[1:4], workers=2)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def tokens(
    tmp_path_factory: pytest.TempPathFactory, real_dataset: Path, byte_vocabulary: Vocabulary
) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "tokens"
    tokenize(real_dataset, byte_vocabulary.path, out)
    return out


def test_tokenize_every_document_decodes_to_its_text(
    tokens: Path, real_dataset: Path, byte_vocabulary: Vocabulary
) -> None:
    dataset = TokenDataset(tokens)
    assert dataset.num_shards == 3
    for shard, file in enumerate(Dataset(real_dataset).data_files()):
        ids = dataset.tokens(shard)
        sidecar = dataset.sidecar(shard, ("id", "start", "length", "bytes")).to_pylist()
        rows = pq.read_table(file).to_pylist()
        assert [row["id"] for row in sidecar] == [row["id"] for row in rows]
        end = 0
        for place, row in zip(sidecar, rows, strict=True):
            assert place["start"] == end
            end += place["length"]
            document = ids[place["start"] : end]
            assert document[-1] == 2
            assert byte_vocabulary.decode(document[:-1]) == row["text"]
            assert place["bytes"] == len(row["text"].encode())
        assert end == len(ids)


def test_tokenize_index_agrees_with_the_sidecar(tokens: Path) -> None:
    dataset = TokenDataset(tokens)
    for shard in range(dataset.num_shards):
        index = read_index(tokens / f"tokens-{shard:05d}.idx")
        sidecar = dataset.sidecar(shard)
        assert index.dtype == dataset.dtype == np.uint16
        assert index.lengths.tolist() == sidecar.column("length").to_pylist()
        assert (index.pointers // 2).tolist() == sidecar.column("start").to_pylist()


def test_tokenize_counts_add_up(tokens: Path, real_texts: list[str]) -> None:
    manifest = TokenDataset(tokens).manifest
    assert manifest["documents"] == len(real_texts)
    assert manifest["bytes"] == sum(len(text.encode()) for text in real_texts)
    sizes = [path.stat().st_size for path in tokens.glob("*.bin")]
    assert manifest["tokens"] * 2 == sum(sizes)
    assert sum(shard["tokens"] for shard in manifest["shards"]) == manifest["tokens"]


def test_tokenize_with_three_workers_gives_the_same_bytes(
    tokens: Path, real_dataset: Path, byte_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    seen = []
    tokenize(real_dataset, byte_vocabulary.path, tmp_path / "t", workers=3, advance=seen.append)
    assert contents(tmp_path / "t") == contents(tokens)
    assert sum(seen) == TokenDataset(tokens).manifest["bytes"]
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_tokenize_equal_request_takes_the_folder_as_it_is(
    tokens: Path, real_dataset: Path, byte_vocabulary: Vocabulary
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tokens.iterdir()}
    manifest = tokenize(real_dataset, byte_vocabulary.path, tokens)
    assert manifest == TokenDataset(tokens).manifest
    assert {path: path.stat().st_mtime_ns for path in tokens.iterdir()} == before


def test_tokenize_another_dataset_is_refused(
    tokens: Path, byte_vocabulary: Vocabulary, write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    other = write_dataset(tmp_path / "other", [["something else"]])
    before = contents(tokens)
    with pytest.raises(
        ValueError, match="holds a token dataset that another request made: dataset"
    ):
        tokenize(other, byte_vocabulary.path, tokens)
    assert contents(tokens) == before


def test_tokenize_begun_by_another_request_is_refused(
    byte_vocabulary: Vocabulary, write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    first = write_dataset(tmp_path / "first", [["one"]])
    (tmp_path / "out" / ".work").mkdir(parents=True)
    (tmp_path / "out" / ".work" / "request.json").write_text('{"dataset": "x", "version": 1}')
    with pytest.raises(ValueError, match="holds a begun token dataset that another request made"):
        tokenize(first, byte_vocabulary.path, tmp_path / "out")


def test_tokenize_leaves_a_foreign_folder_untouched(
    byte_vocabulary: Vocabulary, real_dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="stays untouched"):
        tokenize(real_dataset, byte_vocabulary.path, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_tokenize_two_at_once_are_refused(
    byte_vocabulary: Vocabulary, real_dataset: Path, tmp_path: Path
) -> None:
    with exclusive(tmp_path / "out"), pytest.raises(ValueError, match="another process is writing"):
        tokenize(real_dataset, byte_vocabulary.path, tmp_path / "out")


def test_tokenize_empty_documents_are_one_token(
    byte_vocabulary: Vocabulary, write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [["", None, "x"], [], [""]])
    manifest = tokenize(dataset, byte_vocabulary.path, tmp_path / "out")
    assert [shard["documents"] for shard in manifest["shards"]] == [3, 0, 1]
    opened = TokenDataset(tmp_path / "out")
    assert opened.sidecar(0).column("length").to_pylist() == [1, 1, 2]
    assert opened.sidecar(0, ["bytes"]).column("bytes").to_pylist() == [0, 0, 1]
    assert opened.tokens(0).tolist()[:2] == [2, 2]
    assert opened.tokens(1).tolist() == []


def test_tokenize_where_takes_the_documents_with_the_values(
    byte_vocabulary: Vocabulary, write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [["a", "b"], ["c"]])
    vocabulary = byte_vocabulary.path
    ids = pq.read_table(dataset / "data" / "00000.parquet").column("id").to_pylist()
    manifest = tokenize(dataset, vocabulary, tmp_path / "one", where={"id": ids[1:]})
    assert [shard["documents"] for shard in manifest["shards"]] == [1, 0]
    assert TokenDataset(tmp_path / "one").sidecar(0).column("id").to_pylist() == ids[1:]
    with pytest.raises(ValueError, match="where is"):
        tokenize(dataset, vocabulary, tmp_path / "one")
    with pytest.raises(ValueError, match="names column 'kind'; columns here: id, text, source"):
        tokenize(dataset, vocabulary, tmp_path / "two", where={"kind": ["code"]})
    with pytest.raises(ValueError, match="holds no documents with"):
        tokenize(dataset, vocabulary, tmp_path / "two", where={"source": ["other"]})


def test_tokenize_no_documents_at_all_is_refused(
    byte_vocabulary: Vocabulary, write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[]])
    with pytest.raises(ValueError, match="holds no documents"):
        tokenize(dataset, byte_vocabulary.path, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_tokenize_broken_data_file_raises_and_a_repaired_one_goes_on(
    tokens: Path, byte_vocabulary: Vocabulary, real_dataset: Path, tmp_path: Path
) -> None:
    dataset = shutil.copytree(real_dataset, tmp_path / "dataset")
    broken = dataset / "data" / "00001.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="it is damaged"):
        tokenize(dataset, byte_vocabulary.path, tmp_path / "out", workers=2)
    broken.write_bytes(whole)
    tokenize(dataset, byte_vocabulary.path, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(tokens)


def test_document_at_finds_each_border(tokens: Path) -> None:
    dataset = TokenDataset(tokens)
    for row in dataset.sidecar(1).to_pylist()[:5]:
        last = row["length"] - 1
        assert document_at(tokens, 1, row["start"]) == (row["id"], 0)
        assert document_at(tokens, 1, row["start"] + last) == (row["id"], last)


def test_document_at_outside_is_refused(tokens: Path) -> None:
    with pytest.raises(ValueError, match="shard 3 of 3"):
        document_at(tokens, 3, 0)
    with pytest.raises(ValueError, match="token -1"):
        document_at(tokens, 0, -1)
    with pytest.raises(ValueError, match="in shard 0"):
        document_at(tokens, 0, 1 << 40)


def test_token_dataset_without_manifest_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        TokenDataset(tmp_path)


@pytest.mark.slow
def test_tokenize_killed_anywhere_ends_in_the_same_bytes(
    byte_vocabulary: Vocabulary,
    write_dataset: Callable[..., Path],
    real_texts: list[str],
    tmp_path: Path,
) -> None:
    dataset = write_dataset(tmp_path / "dataset", [real_texts[i::6] for i in range(6)])
    tokenize(dataset, byte_vocabulary.path, tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, "-c", TOKENIZE, str(dataset), str(byte_vocabulary.path), str(out)]
    random_moments = random.Random(0)
    kills = 0
    while not (out / "manifest.json").exists():
        process = subprocess.Popen(command, cwd=Path.cwd(), start_new_session=True)
        # die inside the next shards, not only while Python starts
        wait_for_shard(process, out, shards_done(out) + 1)
        time.sleep(random_moments.random() * 0.2)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        wait_for_end_of_group(process.pid)
    assert kills >= 2
    tokenize(dataset, byte_vocabulary.path, out)
    assert contents(out) == contents(tmp_path / "whole")


def shards_done(out: Path) -> int:
    return len(list((out / ".work").glob("0*.json")))


def wait_for_shard(process: subprocess.Popen, out: Path, count: int) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and shards_done(out) < count:
        assert time.monotonic() < end, "no shard was done within a minute"
        time.sleep(0.01)


def wait_for_end_of_group(group: int) -> None:
    """Waits until the workers have noticed that their parent was killed."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("workers outlive their parent by 30 s")
