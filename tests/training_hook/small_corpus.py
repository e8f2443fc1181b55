"""A small run, and a corpus that it can be trained on, for tests that really train."""

import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mixtures.mixture import Mixture, Part, mix
from mixtures.token_dataset import tokenize
from mixtures.vocabulary_training import train_vocabulary
from pipelines.dataset import file_entry, write_json
from pipelines.document import document_ids as make_document_ids
from training_hook.config import HybridConfig
from training_hook.run import PretrainRun

VOCABULARY = 512
LENGTH = 48
MODEL = HybridConfig(
    hybrid_override_pattern="M-*-",
    vocab_size=VOCABULARY,
    hidden_size=24,
    intermediate_size=48,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=12,
    mamba_num_heads=2,
    mamba_head_dim=12,
    n_groups=1,
    ssm_state_size=8,
    chunk_size=16,
)


def tiny_run(**changes) -> PretrainRun:
    given = {
        "name": "tiny",
        "model": MODEL,
        "sequence_length": LENGTH,
        "batch_size": 4,
        "micro_batch_size": 2,
        "total_tokens": 40 * 4 * LENGTH,
        "peak_learning_rate": 1e-2,
        "precision": "float32",
        "checkpoint_interval": 10,
        "evaluation_interval": 15,
        "evaluation_tokens": 1_500,
    }
    return PretrainRun(**{**given, **changes})


def write_dataset(path: Path, source: str, columns: Mapping[str, Any]) -> Path:
    """Writes what `curate` would: documents with ids and these columns, and a manifest."""
    (path / "data").mkdir(parents=True)
    file = path / "data" / "00000.parquet"
    rows = len(next(iter(columns.values())))
    ids = make_document_ids(source, ["00000"] * rows, list(map(str, range(rows))))
    pq.write_table(pa.table({"id": ids, **columns}), file)
    entries = [file_entry(path, file, rows)]
    write_json(path / "manifest.json", {"recipe": {"fingerprint": source}, "files": entries})
    return path


def make_corpus(root: Path) -> Path:
    """Makes a vocabulary and two mixtures of it, from the standard library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))
    texts = [file.read_text("utf-8") for file in files]
    pieces = [text[i : i + 600] for text in texts for i in range(0, min(len(text), 6_000), 600)]
    comments = [
        "\n".join(line.strip() for line in text.splitlines() if line.strip().startswith("#"))
        for text in texts
    ]
    code = write_dataset(root / "code", "code", {"text": pieces})
    long = [comment for comment in comments if len(comment) > 40]
    prose = write_dataset(root / "prose", "prose", {"text": long})
    train_vocabulary([code, prose], root / "vocabulary", size=VOCABULARY, sample_bytes=100_000)
    tokenize(code, root / "vocabulary", root / "code-tokens")
    tokenize(prose, root / "vocabulary", root / "prose-tokens")
    parts = (Part("code", 0.7), Part("prose", 0.3))
    tokens = {"code": root / "code-tokens", "prose": root / "prose-tokens"}
    mixture = Mixture("test", parts, LENGTH, holdout_share=0.2, max_documents=8)
    mix(mixture, tokens, root / "mixture", seed=3)
    mix(mixture, tokens, root / "other-mixture", seed=4)
    return root
