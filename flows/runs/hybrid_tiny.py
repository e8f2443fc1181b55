"""The main job's model: 2.2 million parameters, eight minutes on two CPU cores."""

from training_hook.config import HybridConfig
from training_hook.run import PretrainRun


def run() -> PretrainRun:
    """A small hybrid in float32, for mixtures of 512-token samples of a 4,096-token vocabulary.

    Two of its six layers are attention: what limits a run this short is when it learns to copy the
    numbers of a question. Single runs with one attention layer in nine learned it late or not at
    all. Two cores do 3,000 to 3,500 tokens/s.
    """
    return PretrainRun(
        name="hybrid_tiny",
        model=HybridConfig(
            hybrid_override_pattern="M*-M*-",
            vocab_size=4_096,
            hidden_size=160,
            intermediate_size=640,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            mamba_num_heads=5,
            mamba_head_dim=64,
            n_groups=1,
            ssm_state_size=64,
            chunk_size=64,
            max_position_embeddings=512,
        ),
        sequence_length=512,
        batch_size=2,
        micro_batch_size=2,
        total_tokens=1_600_000,
        peak_learning_rate=3e-3,
        warmup_share=0.05,
        decay_share=0.3,
        decay_shape="linear",
        min_learning_rate_ratio=0.01,
        seed=1,
        precision="float32",
        checkpoint_interval=200,
        evaluation_interval=10_000,
        evaluation_tokens=20_000,
    )
