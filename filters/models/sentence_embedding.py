"""Embeddings of documents by a model on disk: what SemanticDedup compares."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from filters.models.sentence_model import (
    CONFIG,
    MODULES,
    POOLING,
    TOKENIZER,
    load_sentence_model,
    model_file,
    read_config,
    read_pooling,
)
from pipelines.step import Step

FILES = {"config": CONFIG, "tokenizer": TOKENIZER, "pooling": POOLING, "modules": MODULES}


@dataclass(frozen=True)
class SentenceEmbedding(Step):
    """Adds the embedding of the text: a fixed-size list of float32, of length 1 but for rounding.

    A null text and one without a word have a null embedding. Only the first max_tokens tokens are
    looked at, of 32 * max_tokens characters at most. Each text goes through the model by itself, on
    one thread, so on one CPU type and with one version of torch its embedding depends on nothing
    but the text; values are rounded to multiples of 2^-14.

    Raises:
        ValueError: the folder holds no such model, or max_tokens is more than it was made for.

    Source: Reimers and Gurevych 2019, Sentence-BERT, arXiv:1908.10084.
    """

    model: str
    """The model's folder in the layout of sentence-transformers, or the model.safetensors in it. A
    BERT: all-MiniLM, bge, e5, gte."""
    max_tokens: int = 256
    """[CLS] and [SEP] included."""
    prefix: str = ""
    """What the model wants before each text, such as "passage: "."""
    column: str = "embedding"

    version = 1
    libraries = ("torch", "tokenizers")

    def __post_init__(self) -> None:
        weights = Path(model_file(self.model))
        config = read_config(weights)
        read_pooling(weights)
        most = int(config["max_position_embeddings"])
        if not 3 <= self.max_tokens <= most:
            raise ValueError(
                f"SentenceEmbedding: max_tokens is {self.max_tokens}; wanted 3 to {most}, for "
                f"which {weights.parent} was made"
            )
        kind = pa.list_(pa.float32(), int(config["hidden_size"]))
        found = {name: weights.parent / file for name, file in FILES.items()}
        files = {name: str(path) for name, path in found.items() if path.is_file()}
        attributes: dict[str, Any] = {
            "model": str(weights),
            "adds": pa.schema([(self.column, kind)]),
        }
        for name, value in (attributes | files | {"paths": ("model", *files)}).items():
            object.__setattr__(self, name, value)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the embeddings."""
        kind = self.adds.field(self.column).type
        texts = batch.column("text").to_pylist()
        prefixed = [None if text is None else self.prefix + text for text in texts]
        vectors, absent = load_sentence_model(self.model, self.max_tokens).embeddings(prefixed)
        flat = pa.array(vectors.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(absent))
        return batch.append_column(self.column, column)
