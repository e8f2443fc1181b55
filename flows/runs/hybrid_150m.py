"""A hybrid of 150 million parameters for one H100: 20 layers, two of them attention.

Widths are multiples of 128 and the input projection of a Mamba layer (2 * 2,048 + 2 * 8 * 128 + 32
= 6,176) is one of 16, so that every product can run in FP8 later without padding.
"""

from training_hook.config import HybridConfig
from training_hook.run import PretrainRun


def run() -> PretrainRun:
    """20 tokens a parameter in steps of 0.5 million; for a 32,768-token vocabulary."""
    return PretrainRun(
        name="hybrid_150m",
        model=HybridConfig(
            hybrid_override_pattern="M-M-M*-M-M-M-M*-M-M-",
            vocab_size=32_768,
            hidden_size=768,
            intermediate_size=3_072,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=128,
            mamba_num_heads=32,
            mamba_head_dim=64,
            n_groups=8,
            ssm_state_size=128,
        ),
        sequence_length=2_048,
        batch_size=256,
        micro_batch_size=16,
        total_tokens=3_000_000_000,
        peak_learning_rate=1e-3,
        warmup_share=0.01,
        decay_share=0.18,
        decay_shape="minus_sqrt",
        seed=1,
        precision="bfloat16",
        backend="inductor",
        checkpoint_interval=500,
        evaluation_interval=1_000,
    )
