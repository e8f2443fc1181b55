from collections.abc import Callable
from pathlib import Path

from mixtures.document_sample import sample_texts
from pipelines.dataset import Dataset


def test_sample_is_the_same_for_any_order_of_reading(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    one = Dataset(write_dataset(tmp_path / "one", [[f"text {i}" * 9 for i in range(300)]], "one"))
    two = Dataset(write_dataset(tmp_path / "two", [[f"line {i}" * 7 for i in range(300)]], "two"))
    assert sample_texts([one, two], 3, 5000) == sample_texts([two, one], 3, 5000)


def test_sample_grows_by_appending(write_dataset: Callable[..., Path], tmp_path: Path) -> None:
    texts = [f"document {i} \u00e9\u65e5" for i in range(200)]
    dataset = Dataset(write_dataset(tmp_path / "dataset", [texts[:50], texts[50:]]))
    everything = sample_texts([dataset], 0, 1 << 30)
    assert sorted(everything) == sorted(texts)
    assert everything != texts
    for budget in (1, 17, 18, 500, 3000):
        sampled = sample_texts([dataset], 0, budget)
        size = sum(len(text.encode()) for text in sampled)
        assert budget - 3 < size <= budget  # a cut may leave out a character of up to 3 bytes
        assert "".join(everything).startswith("".join(sampled))


def test_sample_depends_on_the_seed(write_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path / "dataset", [[f"{i:04d}" for i in range(200)]]))
    assert set(sample_texts([dataset], 0, 80)) != set(sample_texts([dataset], 1, 80))


def test_sample_leaves_out_empty_documents(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = Dataset(write_dataset(tmp_path / "dataset", [["", "a", None], [], ["b"]]))
    assert sorted(sample_texts([dataset], 0, 100)) == ["a", "b"]
