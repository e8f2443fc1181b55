"""A sentence-embedding model on disk, in the layout of sentence-transformers.

What is read: config.json, model.safetensors, tokenizer.json, and of modules.json and
1_Pooling/config.json, where they exist, what follows the encoder. No code of the folder is run.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from filters.models.bert import BertEncoder

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
POOLING, MODULES = "1_Pooling/config.json", "modules.json"
SUPPORTED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
FOLLOWING = ("Transformer", "Pooling", "Normalize")
POOLINGS = ("mean", "cls")
CHARACTERS = 32
"""Characters a token of a text that are looked at, so that a text of megabytes takes no longer."""
BINARY_DIGITS = 14
"""After the point, of the values of an embedding: half the bytes on disk, cosines to 0.0001."""


def model_file(model: str) -> str:
    """Returns the path of a model's weights; the folder may be given for it."""
    return model if model.endswith(".safetensors") else str(Path(model) / WEIGHTS)


def read_config(weights: Path) -> dict[str, Any]:
    """Reads the config.json beside the weights.

    Raises:
        ValueError: a file is missing, or the model is of another kind.
    """
    folder = weights.parent
    missing = [name for name in (CONFIG, TOKENIZER) if not (folder / name).is_file()]
    missing += [] if weights.is_file() else [weights.name]
    if missing:
        raise ValueError(
            f"{folder} has no {', '.join(missing)}; wanted the folder of a sentence-embedding "
            f"model with {CONFIG}, {TOKENIZER} and {WEIGHTS}"
        )
    config = json.loads((folder / CONFIG).read_bytes())
    for name, wanted in SUPPORTED.items():
        if config.get(name, wanted) != wanted:
            raise ValueError(
                f"{folder / CONFIG}: {name} is {config[name]!r}, wanted {wanted!r}. Take a BERT "
                f"such as all-MiniLM, bge or e5, or carry embeddings as a column of the source."
            )
    return config


def read_pooling(weights: Path) -> str:
    """Returns how the states of the tokens become one vector: the mean, or the first one (cls).

    Raises:
        ValueError: the model does something else after its encoder.
    """
    folder = weights.parent
    if (folder / MODULES).is_file():
        kinds = [
            row["type"].rpartition(".")[2] for row in json.loads((folder / MODULES).read_bytes())
        ]
        if unknown := [kind for kind in kinds if kind not in FOLLOWING]:
            raise ValueError(
                f"{folder / MODULES}: {', '.join(unknown)} is not supported; wanted only "
                f"{', '.join(FOLLOWING)}"
            )
    if not (folder / POOLING).is_file():
        return "mean"
    config = json.loads((folder / POOLING).read_bytes())
    modes = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
    chosen = [name for name, key in modes.items() if config.get(key)]
    others = [key for key in config if key.startswith("pooling_mode_") and config[key]]
    mode = config.get("pooling_mode", chosen[0] if len(chosen) == len(others) == 1 else others)
    if mode not in POOLINGS:
        raise ValueError(f"{folder / POOLING}: pooling is {mode!r}; wanted mean or cls")
    return mode


@dataclass(frozen=True)
class SentenceModel:
    """A model that is ready to embed."""

    encoder: BertEncoder
    tokenizer: Tokenizer
    pooling: str
    dimensions: int
    max_tokens: int

    def embeddings(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Embeds texts, one at a time on one thread.

        Returns:
            float32 (n, d), of length 1 but for rounding; and bool (n,), true where the text is
            null or has no word and its values are zeros.
        """
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        absent = np.ones(len(texts), bool)
        with _one_thread(), torch.inference_mode():
            for row, text in enumerate(texts):
                vector = None if text is None else self._embed(text)
                if vector is not None:
                    vectors[row], absent[row] = vector, False
        return vectors, absent

    def _embed(self, text: str) -> np.ndarray | None:
        encoding = self.tokenizer.encode(text[: CHARACTERS * self.max_tokens])
        if all(encoding.special_tokens_mask):
            return None
        states = self.encoder(encoding.ids)
        vector = (states[0] if self.pooling == "cls" else states.mean(dim=0)).double()
        values = (vector / vector.norm()).numpy()
        return np.ldexp(np.round(np.ldexp(values, BINARY_DIGITS)), -BINARY_DIGITS)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums go in another order with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def load_sentence_model(weights: str, max_tokens: int) -> SentenceModel:
    """Loads a model.

    Args:
        weights: the safetensors file in the model's folder.
        max_tokens: of a text, [CLS] and [SEP] included; the rest is not looked at.
    """
    path = Path(weights)
    tokenizer = Tokenizer.from_file(str(path.with_name(TOKENIZER)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    config = read_config(path)
    encoder, dimensions = BertEncoder(path, config), int(config["hidden_size"])
    return SentenceModel(encoder, tokenizer, read_pooling(path), dimensions, max_tokens)
