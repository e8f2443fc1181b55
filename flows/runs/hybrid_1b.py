"""A hybrid of 1.05 billion parameters for one H100 or H200: 26 layers, two of them attention.

Its 24 other layers alternate Mamba-2 and MLP. In FP8 with 16k tokens a micro batch it keeps 35 GiB;
on an H200 it does 109 k tokens/s, and 93 k in BF16 (benchmarks/results/bench_gpu.json).
"""

from training_hook.config import HybridConfig
from training_hook.run import PretrainRun


def run() -> PretrainRun:
    """20 tokens a parameter in steps of 0.5 million; for a 65,536-token vocabulary."""
    return PretrainRun(
        name="hybrid_1b",
        model=HybridConfig(
            hybrid_override_pattern="M-M-M-M*-M-M-M-M*-M-M-M-M-",
            vocab_size=65_536,
            hidden_size=2_048,
            intermediate_size=8_192,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            mamba_num_heads=64,
            mamba_head_dim=64,
            n_groups=8,
            ssm_state_size=128,
        ),
        sequence_length=8_192,
        batch_size=64,
        micro_batch_size=2,
        total_tokens=21_000_000_000,
        peak_learning_rate=6e-4,
        warmup_share=0.01,
        decay_share=0.18,
        decay_shape="minus_sqrt",
        seed=1,
        precision="bfloat16",
        linear_recipe="fp8_tensor",
        backend="inductor",
        checkpoint_interval=500,
        evaluation_interval=1_000,
    )
