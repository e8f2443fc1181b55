"""Two GPUs over NCCL against one, compiled, in both ways of gathering weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
ROOT = Path(__file__).parents[2]

STEPS = """
import json
import sys
from dataclasses import replace

import numpy as np
import torch

from benchmarks.training_runs import tiny
from mixtures.stream import Batch
from tests.training_hook.test_model_gpu import CONFIG
from training_hook.batches import host_batch
from training_hook.guard import Guard
from training_hook.loop import build_model
from training_hook.optimizer import adamw, set_learning_rate
from training_hook.ranks import join_ranks
from training_hook.shards import Shards
from training_hook.step import train_step

recipe, reshard, precision, out = sys.argv[1:]
run = replace(tiny(), model=CONFIG, linear_recipe=recipe, reshard=reshard == "True",
              precision=precision, sequence_length=256, batch_size=8, micro_batch_size=2,
              backend="inductor")
results = []
with join_ranks(torch.device("cuda")) as (ranks, device):
    model = build_model(run)
    model.reset_parameters(torch.Generator().manual_seed(0))
    if ranks.world_size == 1:
        model.to(device)
    shards = Shards(model, ranks, device, run.reshard)
    model.compile_layers(run.backend)
    optimizer = adamw(shards, run.betas, run.epsilon, run.weight_decay)
    set_learning_rate(optimizer, 1e-3)
    guard = Guard(0.0, device)
    for step in range(6):
        rng = np.random.default_rng(0)
        rows = len(range(8)) // ranks.world_size
        mine = slice(ranks.rank * rows, (ranks.rank + 1) * rows)
        tokens = rng.integers(3, run.model.vocab_size, (8, 257)).astype(np.uint16)
        mask = rng.random((8, 256)) < np.linspace(0.1, 1.0, 8)[:, None]
        starts = np.tile(np.array([0, 100, 257, 257], np.int32), (8, 1))
        parts = (part[mine] for part in (tokens, mask, starts, np.arange(8)))
        batch = host_batch(Batch(*parts), {}, pin=True).of_all(ranks)
        result = train_step(model, optimizer, guard, batch, run, shards)
        results.append([float(result.loss), float(result.gradient_norm)])
    if ranks.is_first:
        with open(out, "w") as file:
            json.dump(results, file)
"""


def results(folder: Path, gpus: int, *arguments: str) -> torch.Tensor:
    """Returns losses and gradient norms of six steps, (6, 2)."""
    script, out = folder / "steps.py", folder / f"{gpus}.json"
    script.write_text(STEPS)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    command = [sys.executable, *(torchrun if gpus > 1 else []), script, *arguments, out]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.tensor(json.loads(out.read_text()))


@pytest.mark.parametrize("reshard", ["False", "True"])
@pytest.mark.parametrize(
    ("recipe", "precision", "tolerance"),
    [("plain", "float32", 1e-3), ("fp8_tensor", "bfloat16", 1e-2), ("fp8_block", "bfloat16", 1e-2)],
)
def test_two_gpus_train_as_one(tmp_path, recipe, precision, tolerance, reshard):
    one = results(tmp_path, 1, recipe, "False", precision)
    two = results(tmp_path, 2, recipe, reshard, precision)
    assert one[-1, 0] < one[0, 0]
    torch.testing.assert_close(two[:, 0], one[:, 0], rtol=tolerance, atol=0)
    torch.testing.assert_close(two[:, 1], one[:, 1], rtol=5 * tolerance, atol=0)


def test_two_gpus_with_delayed_scaling_train_as_one(tmp_path):
    one = results(tmp_path, 1, "fp8_delayed", "False", "bfloat16")
    two = results(tmp_path, 2, "fp8_delayed", "False", "bfloat16")
    torch.testing.assert_close(two[:, 0], one[:, 0], rtol=1e-2, atol=0)
    torch.testing.assert_close(two[:, 1], one[:, 1], rtol=5e-2, atol=0)
