"""A supervised fine-tuning run: a pretraining run's settings with the defaults of fine-tuning.

Published values to start from (Nemotron 3 Ultra: cosine from 1.5e-5 to 1e-6 after 5% warmup;
Megatron-Bridge for Nano v2: 5e-6 to 1e-6) are for billions of parameters; Nano 2's own were not
reported. Small models want larger ones.
"""

from dataclasses import dataclass

from training_hook.run import PretrainRun


@dataclass(frozen=True)
class SftRun(PretrainRun):
    """Everything that a fine-tuning run is, but where its data, its start and its output lie.

    `model` has to be that of the checkpoint it starts from, except for chunk_size and
    max_position_embeddings. `total_tokens` counts all places of the samples, those of the user and
    of padding included.
    """

    warmup_share: float = 0.05
    decay_share: float = 0.95
    decay_shape: str = "cosine"
    min_learning_rate_ratio: float = 1 / 15
    checkpoint_interval: int = 200
    evaluation_interval: int = 200
