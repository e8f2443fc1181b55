"""A BERT encoder for one text at a time: the family of most small embedding models.

Several texts in one product would give each of them other last bits, depending on its neighbours
and on the padding. One at a time costs little: from a hundred tokens on the products are large
enough to keep a core busy, and nothing is spent on padding.

Source: Devlin et al. 2019, BERT, arXiv:1810.04805, section 3; tensor names as in Hugging Face's.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional

Linear = tuple[torch.Tensor, torch.Tensor]


class BertEncoder:
    """The weights of a model, float32, and the states that it gives a text.

    Raises:
        ValueError: a weight is missing.
    """

    def __init__(self, weights: Path, config: dict[str, Any]) -> None:
        """Reads the weights.

        Args:
            weights: a safetensors file.
            config: Hugging Face's config.json of a BertModel.
        """
        tensors = {name.removeprefix("bert."): t for name, t in load_file(weights).items()}
        self._heads = int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])

        def tensor(name: str) -> torch.Tensor:
            if name not in tensors:
                raise ValueError(f"{weights}: there is no {name!r}; wanted the weights of a BERT")
            return tensors[name].float()

        def linear(name: str) -> Linear:
            return tensor(f"{name}.weight"), tensor(f"{name}.bias")

        self._words = tensor("embeddings.word_embeddings.weight")
        first_type = tensor("embeddings.token_type_embeddings.weight")[0]
        self._places = tensor("embeddings.position_embeddings.weight") + first_type
        self._start = linear("embeddings.LayerNorm")
        self._layers = [
            {
                name: linear(f"encoder.layer.{number}.{name}")
                for name in (
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                    "attention.output.dense",
                    "attention.output.LayerNorm",
                    "intermediate.dense",
                    "output.dense",
                    "output.LayerNorm",
                )
            }
            for number in range(int(config["num_hidden_layers"]))
        ]

    def __call__(self, tokens: list[int]) -> torch.Tensor:
        """Returns the states of the tokens of one text, float32 (tokens, d)."""
        state = self._words[torch.tensor(tokens)] + self._places[: len(tokens)]
        state = self._normed(state, self._start)
        for layer in self._layers:
            parts = (layer[f"attention.self.{name}"] for name in ("query", "key", "value"))
            query, key, value = (self._by_head(functional.linear(state, *part)) for part in parts)
            seen = functional.scaled_dot_product_attention(query, key, value)
            seen = seen.transpose(1, 2).reshape(state.shape)
            seen = functional.linear(seen, *layer["attention.output.dense"])
            state = self._normed(state + seen, layer["attention.output.LayerNorm"])
            inner = functional.gelu(functional.linear(state, *layer["intermediate.dense"]))
            inner = functional.linear(inner, *layer["output.dense"])
            state = self._normed(state + inner, layer["output.LayerNorm"])
        return state

    def _by_head(self, state: torch.Tensor) -> torch.Tensor:
        return state.view(1, len(state), self._heads, -1).transpose(1, 2)

    def _normed(self, state: torch.Tensor, norm: Linear) -> torch.Tensor:
        return functional.layer_norm(state, state.shape[-1:], *norm, self._epsilon)
