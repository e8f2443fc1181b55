"""The runs whose steps the training benchmarks time, beside those of `flows.runs`."""

from dataclasses import replace

from flows.runs import hybrid_1b, hybrid_150m
from training_hook.model import num_parameters
from training_hook.run import PretrainRun


def short_1b() -> PretrainRun:
    """The 1.05B shape whose untuned baseline with mamba_ssm's kernels was 66.0k tokens/s, 38.9%."""
    return replace(
        hybrid_1b.run(),
        batch_size=2,
        total_tokens=10_000_000,
        peak_learning_rate=3e-4,
        linear_recipe="plain",
    )


def in_blocks_of_128(run: PretrainRun) -> PretrainRun:
    """Returns a run with 128 Mamba heads of the same total width, as FP8 blocks want them.

    A Mamba layer's in_proj has 2 * heads * head_dim + 2 * groups * state_size + heads columns, a
    multiple of 128 only with a multiple of 128 heads. Its scan keeps a matrix a head, chunk and
    sequence for the backward pass, so chunks are half as long.
    """
    width = run.model.mamba_inner_size
    model = replace(run.model, mamba_num_heads=128, mamba_head_dim=width // 128, chunk_size=64)
    return replace(run, name=f"{run.name}_128_heads", model=model)


def with_tokens(run: PretrainRun, sequence_length: int, tokens: int, steps: int) -> PretrainRun:
    """Returns a run of some steps with one micro batch of at most so many tokens each."""
    sequences = max(1, tokens // sequence_length)
    return replace(
        run,
        sequence_length=sequence_length,
        batch_size=sequences,
        micro_batch_size=sequences,
        total_tokens=steps * sequences * sequence_length,
    )


def losses_150m() -> PretrainRun:
    """153 million parameters for a few hundred small steps: a lower peak, a longer warmup."""
    run = in_blocks_of_128(hybrid_150m.run())
    return replace(run, peak_learning_rate=6e-4, warmup_share=0.1, decay_share=0.2)


def tiny() -> PretrainRun:
    """The smallest model that both FP8 recipes take with M, - and * in them, for a CPU."""
    run = losses_150m()
    model = replace(
        run.model,
        hybrid_override_pattern="-M*--",
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        mamba_num_heads=128,
        mamba_head_dim=1,
        n_groups=1,
        ssm_state_size=64,
        chunk_size=16,
    )
    return replace(
        run,
        name="tiny",
        model=model,
        plain_first_layers=1,
        plain_last_layers=1,
        precision="float32",
        backend="aot_eager",
    )


def transformer_of(run: PretrainRun) -> PretrainRun:
    """Returns a run of attention and MLP alone, of the same width and about as many parameters.

    For the 1.05 B hybrid that is 17 of each, 1.053 B.
    """
    size = num_parameters(run.model)
    sizes = {
        pairs: abs(num_parameters(replace(run.model, hybrid_override_pattern=pairs * "*-")) - size)
        for pairs in range(3, 2 * run.model.num_hidden_layers)
    }
    pattern = min(sizes, key=sizes.__getitem__) * "*-"
    return replace(run, model=replace(run.model, hybrid_override_pattern=pattern))


def tiny_1b() -> PretrainRun:
    """A run as `short_1b` of a size that a CPU traces in seconds."""
    return replace(
        tiny(),
        name="tiny_1b",
        model=replace(tiny().model, vocab_size=65_536),
        sequence_length=64,
        batch_size=2,
        micro_batch_size=2,
        total_tokens=1000 * 2 * 64,
        linear_recipe="plain",
    )
