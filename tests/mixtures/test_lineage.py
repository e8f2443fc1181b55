from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixtures.holdout import held_out
from mixtures.lineage import lineage, samples_of
from mixtures.mixture import Mixture, Part, mix
from mixtures.plan import Plan
from mixtures.token_dataset import TokenDataset

LENGTHS = np.maximum(1, np.random.default_rng(3).lognormal(2.8, 1.1, 160)).astype(int).tolist()
NUM_SAMPLES = 300


@pytest.fixture(scope="module")
def tokens(
    tmp_path_factory: pytest.TempPathFactory, write_tokens: Callable[..., Path]
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("lineage")
    return {
        "docs": write_tokens(root / "docs", [LENGTHS[:60], LENGTHS[60:100]], "docs"),
        "code": write_tokens(root / "code", [LENGTHS[100:130], LENGTHS[130:]], "code"),
    }


@pytest.fixture(scope="module")
def mixture(tokens: dict[str, Path]) -> Path:
    parts = (Part("docs", 2.0, 10.0), Part("code", 1.0, 10.0))
    chosen = Mixture("two", parts, 32, num_samples=NUM_SAMPLES, holdout_share=0.1, max_documents=8)
    mix(chosen, tokens, tokens["docs"].parent / "mixture", seed=0)
    return tokens["docs"].parent / "mixture"


def test_samples_of_is_lineage_backwards_for_every_document(
    mixture: Path, tokens: dict[str, Path]
) -> None:
    seen: dict[str, set[int]] = {}
    for index in range(NUM_SAMPLES):
        for place in lineage(mixture, index):
            seen.setdefault(place.document_id, set()).add(index)
    for folder in tokens.values():
        for shard in range(2):
            for document in TokenDataset(folder).sidecar(shard).column("id").to_pylist():
                assert samples_of(mixture, document) == sorted(seen.get(document, ()))
    document = max(seen, key=lambda name: len(seen[name]))
    some = sorted(seen[document])
    assert samples_of(mixture, document, before=some[3]) == some[:3]


def test_lineage_ranges_lie_inside_their_documents(mixture: Path, tokens: dict[str, Path]) -> None:
    lengths = {
        row["id"]: row["length"]
        for folder in tokens.values()
        for shard in range(2)
        for row in TokenDataset(folder).sidecar(shard).to_pylist()
    }
    for index in range(0, NUM_SAMPLES, 11):
        for place in lineage(mixture, index):
            assert 0 <= place.start < place.stop <= lengths[place.document_id]


def test_held_out_documents_are_in_no_sample(mixture: Path, tokens: dict[str, Path]) -> None:
    documents = list(held_out(mixture, 1 << 30))
    assert {document.part for document in documents} == {"docs", "code"}
    for document in documents:
        assert samples_of(mixture, document.document_id) == []
        for shard in range(2):
            table = TokenDataset(tokens[document.part]).sidecar(shard).to_pylist()
            for row in table:
                if row["id"] == document.document_id:
                    whole = TokenDataset(tokens[document.part]).tokens(shard)
                    wanted = whole[row["start"] :][: row["length"]]
                    assert document.tokens.tolist() == wanted.tolist()
                    assert document.size_bytes == row["length"] * 4


def test_held_out_stops_each_part_at_its_tokens(mixture: Path) -> None:
    everything = list(held_out(mixture, 1 << 30))
    few = list(held_out(mixture, 40))
    for part in ("docs", "code"):
        ids = [document.document_id for document in everything if document.part == part]
        taken = [document for document in few if document.part == part]
        assert [document.document_id for document in taken] == ids[: len(taken)]
        total = sum(len(document.tokens) for document in taken)
        assert total >= 40
        assert total - len(taken[-1].tokens) < 40


def test_samples_of_unknown_document_is_refused(mixture: Path) -> None:
    with pytest.raises(ValueError, match="no part has a document"):
        samples_of(mixture, "0" * 32)


def test_lineage_outside_is_refused(mixture: Path) -> None:
    with pytest.raises(ValueError, match="sample 300 of 300"):
        lineage(mixture, NUM_SAMPLES)


def test_plan_of_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is no finished mixture"):
        Plan(tmp_path)
