"""Fine-tunes the main job's model on conversations: a minute on two CPU cores."""

from flows.runs import hybrid_tiny
from training_hook.sft_run import SftRun


def run() -> SftRun:
    """Starts from hybrid_tiny, on mixtures of 512-token samples of its 4,096-token vocabulary."""
    return SftRun(
        name="sft_tiny",
        model=hybrid_tiny.run().model,
        sequence_length=512,
        batch_size=4,
        micro_batch_size=4,
        total_tokens=120_000,
        peak_learning_rate=1e-3,
        seed=1,
        precision="float32",
        checkpoint_interval=50,
        evaluation_interval=10_000,
        evaluation_tokens=20_000,
    )
