"""A trained model and what it was trained on: what every task asks for."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mixtures.vocabulary import Vocabulary, load_vocabulary
from training_hook.checkpoint import last_checkpoint, load_weights, read_checkpoint
from training_hook.config import HybridConfig
from training_hook.model import HybridModel


@dataclass(frozen=True)
class Trained:
    """A checkpoint, loaded."""

    step: int
    model: HybridModel
    vocabulary: Vocabulary
    sequence_length: int
    """Tokens of the sequences that it was trained on."""
    mixture: str
    """Fingerprint of the mixture that it was trained on."""
    evaluation_tokens: int
    """Held-out tokens of each part that its run scores."""


def load_trained(training: str | Path, tokenizer: str | Path, device: str = "") -> Trained:
    """Loads a checkpoint, or the last one of a run, for evaluation.

    Args:
        training: folder of a checkpoint (step-N), of checkpoints or of a run.
        tokenizer: folder of its vocabulary.
        device: "cuda" or "cpu"; a GPU if there is one, where not given.

    Raises:
        ValueError: there is no finished checkpoint, or it was trained on another vocabulary.
    """
    path = last_checkpoint(Path(training))
    manifest = read_checkpoint(path)
    vocabulary = load_vocabulary(tokenizer)
    wanted = manifest["mixture"]["vocabulary"]
    if vocabulary.fingerprint != wanted:
        raise ValueError(
            f"{tokenizer} is not the vocabulary of {path}: its fingerprint is "
            f"{vocabulary.fingerprint[:12]}, wanted {wanted[:12]}"
        )
    model = HybridModel(HybridConfig(**manifest["run"]["model"]))
    model.load_state_dict(load_weights(path), strict=not model.config.tie_word_embeddings)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run, mixture = manifest["run"], manifest["mixture"]["fingerprint"]
    length, tokens = run["sequence_length"], run["evaluation_tokens"]
    return Trained(manifest["step"], model, vocabulary, length, mixture, tokens)
