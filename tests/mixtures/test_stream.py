import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtures.lineage import lineage
from mixtures.mixture import Mixture, Part, Phase, mix
from mixtures.stream import Batch, Stream
from mixtures.token_dataset import TokenDataset

LENGTH = 32
LENGTHS = np.maximum(1, np.random.default_rng(2).lognormal(2.8, 1.1, 500)).astype(int).tolist()
PARTS = (Part("docs", 3.0), Part("code", 1.0))
PHASES = (
    Phase("start", 0.8, (("docs", 0.9), ("code", 0.1))),
    Phase("anneal", 0.2, (("docs", 0.3), ("code", 0.7))),
)
quiet = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokens(
    tmp_path_factory: pytest.TempPathFactory, write_tokens: Callable[..., Path]
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stream")
    return {
        "docs": write_tokens(root / "docs", [LENGTHS[:250], [], LENGTHS[250:400]], "docs"),
        "code": write_tokens(root / "code", [LENGTHS[400:]], "code"),
    }


@pytest.fixture(scope="module")
def mixture(tokens: dict[str, Path]) -> Path:
    chosen = Mixture("two", PARTS, LENGTH, phases=PHASES, num_samples=700, max_documents=8)
    mix(chosen, tokens, tokens["docs"].parent / "mixture", seed=5)
    return tokens["docs"].parent / "mixture"


def equal(one: Batch, other: Batch) -> bool:
    masks = one.loss_mask, other.loss_mask
    return (
        np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.boundaries, other.boundaries)
        and np.array_equal(one.sample_indices, other.sample_indices)
        and np.array_equal(*(np.ones_like(one.tokens[:, 1:]) if m is None else m for m in masks))
    )


def rows(batches: list[Batch]) -> list[Batch]:
    """Returns each row of each batch as a batch."""
    return [
        Batch(
            batch.tokens[i : i + 1],
            None if batch.loss_mask is None else batch.loss_mask[i : i + 1],
            batch.boundaries[i : i + 1],
            batch.sample_indices[i : i + 1],
        )
        for batch in batches
        for i in range(len(batch.tokens))
    ]


def test_stream_sample_is_what_its_lineage_says(mixture: Path, tokens: dict[str, Path]) -> None:
    """Every array of a sample, rebuilt from sidecars and shards in plain Python."""
    stream = Stream(mixture, 4)
    documents = {}
    for part, folder in tokens.items():
        dataset = TokenDataset(folder)
        for shard in range(dataset.num_shards):
            for row in dataset.sidecar(shard).to_pylist():
                ids = dataset.tokens(shard)[row["start"] :][: row["length"]]
                documents[part, row["id"]] = ids
    for index in range(0, 700, 7):
        batch = stream.sample(index)
        ids = np.zeros(LENGTH + 1, np.int32)
        mask = np.zeros(LENGTH + 1, bool)
        starts, filled = [], 0
        for place in lineage(mixture, index):
            piece = documents[place.part, place.document_id][place.start : place.stop]
            ids[filled : filled + len(piece)] = piece
            mask[filled : filled + len(piece)] = True
            mask[filled] = place.start == 0
            starts.append(filled)
            filled += len(piece)
        assert batch.tokens[0].tolist() == ids.tolist()
        found = np.ones(LENGTH, bool) if batch.loss_mask is None else batch.loss_mask[0]
        assert found.tolist() == mask[1:].tolist()
        assert batch.boundaries[0].tolist() == starts + [LENGTH + 1] * (8 - len(starts))
        assert batch.sample_indices.tolist() == [index]
        assert batch.tokens.dtype == np.int32
        assert batch.boundaries.dtype == np.int32
        assert batch.sample_indices.dtype == np.int64


@quiet
@given(
    start=st.integers(0, 40),
    steps=st.integers(0, 6),
    world_size=st.sampled_from([1, 2, 4]),
    then=st.sampled_from([1, 2, 4]),
)
def test_stream_resumed_anywhere_on_any_ranks_gives_the_same_samples(
    mixture: Path, start: int, steps: int, world_size: int, then: int
) -> None:
    unbroken = Stream(mixture, 8)
    wanted = rows([next(unbroken) for _ in range(50)])[start * 8 : (start + steps + 3) * 8]
    found = []
    ranks = [Stream(mixture, 8, rank, world_size, start * 8) for rank in range(world_size)]
    for _ in range(steps):
        found += rows([next(rank) for rank in ranks])
    states = [json.loads(json.dumps(rank.state_dict())) for rank in ranks]
    assert all(state == states[0] for state in states)
    ranks = [Stream(mixture, 8, rank, then) for rank in range(then)]
    for rank in ranks:
        rank.load_state_dict(states[0])
    for _ in range(3):
        found += rows([next(rank) for rank in ranks])
    assert len(found) == len(wanted)
    assert all(equal(one, other) for one, other in zip(found, wanted, strict=True))


@quiet
@given(start=st.integers(0, 690), batch_size=st.integers(1, 9))
def test_stream_starts_at_any_sample_with_any_batch(
    mixture: Path, start: int, batch_size: int
) -> None:
    stream = Stream(mixture, batch_size, start=start)
    batch = next(stream)
    assert batch.sample_indices.tolist() == list(range(start, start + batch_size))
    assert equal(batch, stream.batch(np.arange(start, start + batch_size)))
    for row, index in zip(rows([batch]), batch.sample_indices, strict=True):
        assert equal(row, stream.sample(int(index)))


def test_stream_ends_with_the_last_whole_batch(mixture: Path) -> None:
    batches = list(Stream(mixture, 64))
    assert len(batches) == 700 // 64
    assert len(list(Stream(mixture, 64, start=700))) == 0


def test_stream_one_epoch_shows_every_token_once(
    write_tokens: Callable[..., Path], tmp_path: Path
) -> None:
    tokens = write_tokens(tmp_path / "tokens", [LENGTHS])
    part = Part("docs", 1.0, max_repetition=1.0)
    chosen = Mixture("one", (part,), LENGTH, holdout_share=0.0, max_documents=8)
    manifest = mix(chosen, {"docs": tokens}, tmp_path / "out", seed=0)
    assert manifest["num_samples"] == manifest["parts"][0]["packs"]
    seen = []
    for batch in Stream(tmp_path / "out", 1):
        mask = np.ones(LENGTH, bool) if batch.loss_mask is None else batch.loss_mask[0]
        seen += batch.tokens[0, 1:][mask].tolist()
        seen += (
            batch.tokens[0, :1].tolist() if is_first_of_document(tmp_path / "out", batch) else []
        )
    assert sorted(seen) == list(range(3, 3 + sum(LENGTHS)))


def is_first_of_document(mixture: Path, batch: Batch) -> bool:
    return lineage(mixture, int(batch.sample_indices[0]))[0].start == 0


def test_stream_state_of_another_mixture_is_refused_unless_it_continues(
    mixture: Path, tokens: dict[str, Path], tmp_path: Path
) -> None:
    first = Stream(mixture, 8)
    for _ in range(3):
        next(first)
    mix(Mixture("next", PARTS, LENGTH, num_samples=100, max_documents=8), tokens, tmp_path / "n", 0)
    second = Stream(tmp_path / "n", 4)
    with pytest.raises(ValueError, match="the state is of mixture"):
        second.load_state_dict(first.state_dict())
    second.load_state_dict(first.state_dict(), continuation=True)
    assert next(second).sample_indices.tolist() == [0, 1, 2, 3]
    state = second.state_dict()
    assert state["samples"] == 28
    assert [entry[0] for entry in state["history"]] == [0, 24]
    third = Stream(tmp_path / "n", 2)
    third.load_state_dict(json.loads(json.dumps(state)))
    assert next(third).sample_indices.tolist() == [4, 5]
    assert third.state_dict()["history"] == state["history"]


def test_stream_state_past_the_end_is_refused(mixture: Path) -> None:
    stream = Stream(mixture, 8)
    state = stream.state_dict() | {"samples": 701}
    with pytest.raises(ValueError, match="sample 701 of 700"):
        stream.load_state_dict(state)


def test_stream_wrong_setting_is_refused(mixture: Path) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        Stream(mixture, 6, 0, 4)
    with pytest.raises(ValueError, match="rank is 2"):
        Stream(mixture, 8, 2, 2)
    with pytest.raises(ValueError, match="start is 701"):
        Stream(mixture, 8, start=701)
    with pytest.raises(ValueError, match="samples -1 to 3"):
        Stream(mixture, 8).batch(np.array([3, -1]))
    with pytest.raises(ValueError, match="samples 700 to 700"):
        Stream(mixture, 8).sample(700)


def test_stream_after_a_move_finds_its_tokens_or_is_told(
    mixture: Path, tokens: dict[str, Path], tmp_path: Path
) -> None:
    wanted = next(Stream(mixture, 8))
    together = tmp_path / "together"
    for folder in (mixture, *tokens.values()):
        shutil.copytree(folder, together / folder.name)
    assert equal(next(Stream(together / "mixture", 8)), wanted)
    alone = shutil.copytree(mixture, tmp_path / "deep" / "er" / "mixture")
    with pytest.raises(ValueError, match="is missing"):
        Stream(alone, 8)
    assert equal(next(Stream(alone, 8, token_datasets=tokens)), wanted)


def test_stream_of_changed_tokens_is_refused(
    mixture: Path, tokens: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(tokens["code"], tmp_path / "code")
    moved = {**tokens, "code": copy}
    with (copy / "tokens-00000.bin").open("ab") as stream:
        stream.write(b"1234")
    with pytest.raises(ValueError, match="it was changed after it was written"):
        Stream(mixture, 8, token_datasets=moved)
    with pytest.raises(ValueError, match="is not the token dataset that"):
        Stream(mixture, 8, token_datasets={"docs": tokens["code"]})


def test_stream_batches_are_their_own_memory(mixture: Path) -> None:
    stream = Stream(mixture, 8)
    first = next(stream)
    kept = first.tokens.copy()
    for _ in range(5):
        next(stream)
    assert np.array_equal(first.tokens, kept)


def test_stream_imports_no_heavy_library() -> None:
    """The trainer reads streams on machines that have only numpy, numba and pyarrow."""
    heavy = "torch, fsspec, tokenizers, sentencepiece, rich, pandas, datasets, huggingface_hub"
    code = (
        "import sys, mixtures.stream, mixtures.lineage, mixtures.holdout\n"
        f"print(sorted(set({heavy.split(', ')}) & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
