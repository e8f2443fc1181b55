import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixtures.mixture import Mixture, Part, mix
from mixtures.token_dataset import tokenize
from mixtures.vocabulary_training import train_vocabulary
from tests.training_hook.small_corpus import write_dataset
from training_hook.config import HybridConfig
from training_hook.model import HybridModel
from training_hook.pretrain import pretrain
from training_hook.run import PretrainRun

LENGTH = 256
VOCABULARY = 1_024


def columns_of(source: str, texts: list[str]) -> dict[str, list[str | None]]:
    """Returns texts as columns of a dataset, with hosts and languages by turns."""
    rows = range(len(texts))
    return {
        "text": [*texts],
        "url": [f"https://www.{'ab'[row % 2]}.example/{source}/{row}" for row in rows],
        "language": [("en", "de", None)[row % 3] for row in rows],
    }


def _make_model(vocab_size: int, seed: int) -> HybridModel:
    config = HybridConfig(
        hybrid_override_pattern="M-*-",
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        mamba_num_heads=2,
        mamba_head_dim=8,
        n_groups=1,
        ssm_state_size=8,
        chunk_size=8,
        initializer_range=0.3,
    )
    model = HybridModel(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


@pytest.fixture(scope="session")
def make_model() -> Callable[[int, int], HybridModel]:
    """A function (vocabulary size, seed) that draws a tiny model.

    Its weights are large, so that what it predicts depends on what stands before.
    """
    return _make_model


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets `prose` and `code`, a tokenizer, a mixture of both and a run of two steps on it."""
    root = tmp_path_factory.mktemp("evaluation")
    packages = Path(sysconfig.get_paths()["purelib"])
    files = {
        "prose": sorted(packages.glob("*.dist-info/METADATA"))[:60],
        "code": sorted(packages.glob("numpy/lib/*.py"))[:40],
    }
    datasets = {}
    for name, paths in files.items():
        texts = [path.read_bytes().decode(errors="replace") for path in paths]
        cut = [text[: 6_000 - 7 * row] for row, text in enumerate(texts) if text]  # no two as long
        datasets[name] = write_dataset(root / name, name, columns_of(name, cut))
    train_vocabulary(
        [*datasets.values()], root / "tokenizer", size=VOCABULARY, sample_bytes=200_000
    )
    for name, folder in datasets.items():
        tokenize(folder, root / "tokenizer", root / f"{name}-tokens")
    parts = {name: root / f"{name}-tokens" for name in datasets}
    mixture = Mixture(
        "text",
        (Part("prose", 0.5, 100.0), Part("code", 0.5, 100.0)),
        LENGTH,
        num_samples=8,
        holdout_share=0.3,
    )
    mix(mixture, parts, root / "mixture", 0)
    model = _make_model(VOCABULARY, 0).config
    run = PretrainRun(
        name="tiny",
        model=replace(model, max_position_embeddings=LENGTH, initializer_range=0.02),
        sequence_length=LENGTH,
        batch_size=4,
        micro_batch_size=2,
        total_tokens=2 * 4 * LENGTH,
        peak_learning_rate=1e-2,
        precision="float32",
        evaluation_tokens=20_000,
    )
    pretrain(run, root / "mixture", root / "training", device="cpu")
    return root
