"""The runs of the trials: a hybrid of 106 million parameters, a Transformer as large, small ones.

Both are trained alike; the hybrid's widths are those of `flows.runs.hybrid_150m`, with fewer layers
and half the vocabulary. Their peak learning rates are what `hybrid_transformer --sweep` chose.
"""

from dataclasses import replace
from typing import Any

from flows.runs import hybrid_20m, hybrid_150m
from training_hook.config import HybridConfig
from training_hook.run import PretrainRun
from training_hook.sft_run import SftRun

VOCABULARY_SIZE = 16_384
TOKENS = 100_663_296
"""768 steps of 64 sequences of 2,048."""


def hybrid() -> PretrainRun:
    """16 layers: 7 Mamba, 7 MLP, 2 attention; 105.7 million parameters, 25.2 of them embeddings."""
    run = hybrid_150m.run()
    model = replace(
        run.model, hybrid_override_pattern="M-M-M*-M-M-M*-M-", vocab_size=VOCABULARY_SIZE
    )
    return replace(
        run,
        name="trial_hybrid",
        model=model,
        batch_size=64,
        micro_batch_size=32,
        total_tokens=TOKENS,
        peak_learning_rate=1e-3,
        warmup_share=0.05,
        decay_share=0.25,
        checkpoint_interval=256,
        keep_last=1,
        evaluation_interval=128,
        evaluation_tokens=400_000,
    )


def transformer() -> PretrainRun:
    """13 pairs of attention and MLP with rotary positions; 105.7 million parameters.

    Attention is the hybrid's; the MLP is a little narrower, so that the sizes agree.
    """
    run = hybrid()
    model = replace(
        run.model,
        hybrid_override_pattern="*-" * 13,
        intermediate_size=3_008,
        position_embedding_type="rope",
    )
    return replace(run, name="trial_transformer", model=model)


def base() -> PretrainRun:
    """25 million parameters for fine-tuning, with the trials' vocabulary: a minute or two."""
    run = hybrid_20m.run()
    return replace(
        run,
        name="trial_base",
        model=replace(run.model, vocab_size=VOCABULARY_SIZE),
        micro_batch_size=64,
        total_tokens=65_536_000,
        decay_share=0.25,
        checkpoint_interval=500,
        keep_last=1,
        evaluation_interval=500,
        evaluation_tokens=200_000,
    )


def tuned() -> SftRun:
    """Fine-tunes `base` on conversations."""
    run = base()
    return SftRun(
        name="trial_tuned",
        model=run.model,
        sequence_length=run.sequence_length,
        batch_size=32,
        micro_batch_size=32,
        total_tokens=6_553_600,
        peak_learning_rate=5e-4,
        seed=1,
        precision=run.precision,
        backend=run.backend,
        keep_last=1,
        evaluation_tokens=50_000,
    )


def tiny(run: PretrainRun) -> PretrainRun:
    """Shrinks a run to what a CPU does in seconds; letters, recipe and schedule stay."""
    model = replace(
        run.model,
        hybrid_override_pattern="*-*-" if "M" not in run.model.hybrid_override_pattern else "-M*--",
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        mamba_num_heads=128,
        mamba_head_dim=1,
        n_groups=1,
        ssm_state_size=64,
        chunk_size=16,
    )
    return replace(
        run,
        model=model,
        batch_size=4,
        micro_batch_size=4,
        total_tokens=24 * 4 * run.sequence_length,
        plain_first_layers=1,
        plain_last_layers=1,
        precision="float32",
        backend="eager",
        checkpoint_interval=8,
        evaluation_interval=8,
        evaluation_tokens=2_000,
    )


def to_run(parameters: dict[str, Any]) -> PretrainRun:
    """Returns the run that `PretrainRun.parameters` described."""
    model = HybridConfig(**parameters["model"])
    betas = parameters["betas"][0], parameters["betas"][1]
    ramp = tuple((share, size) for share, size in parameters["batch_ramp"])
    return PretrainRun(**{**parameters, "model": model, "betas": betas, "batch_ramp": ramp})
