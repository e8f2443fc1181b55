"""A hybrid of 20 million parameters: minutes on a GPU, for comparing mixtures."""

from training_hook.config import HybridConfig
from training_hook.run import PretrainRun


def run() -> PretrainRun:
    """20 tokens a parameter in steps of 64k tokens; for mixtures with an 8,192-token vocabulary."""
    return PretrainRun(
        name="hybrid_20m",
        model=HybridConfig(
            hybrid_override_pattern="M-M-M*-M-M-",
            vocab_size=8_192,
            hidden_size=384,
            intermediate_size=1_536,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=64,
            mamba_num_heads=16,
            mamba_head_dim=64,
            n_groups=4,
            ssm_state_size=64,
        ),
        sequence_length=1_024,
        batch_size=64,
        micro_batch_size=32,
        total_tokens=400_000_000,
        peak_learning_rate=2e-3,
        warmup_share=0.02,
        decay_share=0.18,
        decay_shape="minus_sqrt",
        seed=1,
        precision="bfloat16",
        backend="inductor",
        checkpoint_interval=500,
        evaluation_interval=1_000,
    )
