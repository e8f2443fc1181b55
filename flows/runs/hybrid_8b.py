"""The shape of Nemotron-H 8B: 8.10 billion parameters, 52 layers, four of them attention.

Its state alone is 130 GB (16 bytes a parameter), more than one GPU of 80 GB has; `--dry-run` says
what a run would take.

Source: NVIDIA 2025, Nemotron-H, arXiv:2504.03624.
"""

from training_hook.config import HybridConfig
from training_hook.run import PretrainRun


def run() -> PretrainRun:
    """100 billion tokens in steps of 6.3 million; for a 131,072-token vocabulary."""
    return PretrainRun(
        name="hybrid_8b",
        model=HybridConfig(
            hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
            vocab_size=131_072,
            hidden_size=4_096,
            intermediate_size=21_504,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            mamba_num_heads=128,
            mamba_head_dim=64,
            n_groups=8,
            ssm_state_size=128,
        ),
        sequence_length=8_192,
        batch_size=768,
        micro_batch_size=1,
        total_tokens=100_000_000_000,
        peak_learning_rate=8e-4,
        warmup_share=0.01,
        decay_share=0.18,
        seed=1,
        precision="bfloat16",
        linear_recipe="fp8_tensor",
        backend="inductor",
        checkpoint_interval=500,
        evaluation_interval=1_000,
    )
