"""Two processes over gloo, started by torchrun, against one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from tests.training_hook import test_pretrain
from tests.training_hook.test_pretrain import assert_same_run, tiny_run
from training_hook.carry_out import check_ranks
from training_hook.checkpoint import checkpoints, load_weights, read_checkpoint
from training_hook.metrics import read_evaluations, read_metrics
from training_hook.pretrain import pretrain
from training_hook.ranks import ALONE, Ranks
from training_hook.run import PretrainRun

corpus, one_thread = test_pretrain.corpus, test_pretrain.one_thread
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def small_run(**changes) -> PretrainRun:
    """Rows of three heads do not divide by two ranks, and neither does the held-out text."""
    run = tiny_run(batch_size=8, total_tokens=20 * 8 * 48, checkpoint_interval=5, **changes)
    return replace(run, keep_last=4, model=replace(run.model, mamba_num_heads=3))


def fp8_run() -> PretrainRun:
    """Delayed scaling in some layers: every rank must scale alike."""
    run = small_run(linear_recipe="fp8_delayed", plain_first_layers=1, plain_last_layers=0)
    sizes = {"hidden_size": 32, "mamba_num_heads": 2, "mamba_head_dim": 16, "head_dim": 16}
    return replace(run, model=replace(run.model, **sizes)).with_steps(8)


RUNS = {
    "plain": small_run(),
    "reshard": small_run(reshard=True, batch_ramp=((0.5, 4),)).with_steps(6),
    "fp8": fp8_run(),
    "compiled": small_run(backend="aot_eager").with_steps(2),
}

WORKER = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.training_hook.test_ranks import RUNS
from training_hook.pretrain import pretrain

torch.set_num_threads(1)
dist.init_process_group("gloo")
mixture, out, start = map(Path, sys.argv[1:])
for name, run in (*RUNS.items(), ("resumed", RUNS["plain"])):
    pretrain(run, mixture, out / name, device="cpu")
pretrain(RUNS["plain"].with_steps(2), mixture, out / "started", device="cpu", start=start)
dist.destroy_process_group()
"""


def start(arguments: list[object], folder: Path) -> subprocess.Popen[str]:
    """Starts two ranks; `folder` is on their path."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{folder}"},
    )


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> Path:
    """The outputs of one process, by name of the run."""
    out = tmp_path_factory.mktemp("alone")
    for name, run in RUNS.items():
        pretrain(
            replace(run, reshard=False, backend="eager"),
            corpus / "mixture",
            out / name,
            device="cpu",
        )
    return out


@pytest.fixture(scope="module")
def both(corpus, alone, tmp_path_factory) -> Path:
    """The outputs of two processes, by name of the run, and of one that they went on with."""
    out = tmp_path_factory.mktemp("both")
    cut_back(alone / "plain", out / "resumed", 10)
    (out / "worker.py").write_text(WORKER)
    worker = start([out / "worker.py", corpus / "mixture", out, alone / "plain"], out)
    stdout, stderr = worker.communicate(timeout=300)
    assert worker.returncode == 0, stdout + stderr
    assert "ranks 1 then, 2 now" in stderr
    return out


def assert_close_runs(out: Path, other: Path, tolerance: float) -> None:
    """Asserts that two runs saw the same in the same order and agree up to rounding."""
    ours, theirs = read_metrics(out), read_metrics(other)
    for column in ("step", "first_sample", "samples", "target_tokens", "learning_rate", "skipped"):
        assert ours[column].equals(theirs[column])
    for column in ("loss", "gradient_norm"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=tolerance)
    for row, wanted in zip(ours.to_pylist(), theirs.to_pylist(), strict=True):
        assert dict(row["loss_by_part"]) == pytest.approx(
            dict(wanted["loss_by_part"]), rel=tolerance
        )
    ours, theirs = read_evaluations(out), read_evaluations(other)
    for column in ("step", "part", "documents", "tokens", "bytes"):
        assert ours[column].equals(theirs[column])
    np.testing.assert_allclose(ours["nats"], theirs["nats"], rtol=tolerance)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_as_one_process(alone, both, name):
    assert_close_runs(both / name, alone / name, 1e-4 if name == "fp8" else 1e-5)
    last = max(checkpoints(both / name / "checkpoints").values())
    other = max(checkpoints(alone / name / "checkpoints").values())
    ours, theirs = load_weights(last), load_weights(other)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        # not by element: Adam makes a step of a gradient that is nothing but rounding
        assert (tensor - theirs[key]).norm() <= 1e-2 * theirs[key].norm()


def test_ranks_scale_by_the_largest_values_of_all(alone, both):
    ours, theirs = (
        load_file(max((out / "fp8" / "checkpoints").glob("step-*")) / "amaxes" / file)
        for out, file in (
            (both, "model-00001-of-00002.safetensors"),
            (alone, "model-00001-of-00001.safetensors"),
        )
    )
    assert ours.keys() == theirs.keys()
    for name, amaxes in ours.items():
        assert amaxes[:8].min() > 0
        # of the first of eight steps, which has the same weights
        torch.testing.assert_close(amaxes[7], theirs[name][7], rtol=1e-3, atol=0)


def test_checkpoint_of_two_ranks_has_a_shard_of_each(both):
    path = max(checkpoints(both / "plain" / "checkpoints").values())
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for folder in ("model", "exp_avg", "exp_avg_sq"):
        assert sorted(file.name for file in (path / folder).iterdir()) == names
    assert read_checkpoint(path)["environment"]["ranks"] == 2


def test_shards_of_two_ranks_are_read_by_pytorchs_distributed_checkpoint(both):
    path = max(checkpoints(both / "plain" / "checkpoints").values())
    wanted = load_weights(path)
    into = {name: torch.full_like(tensor, torch.nan) for name, tensor in wanted.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is one process only
        dcp.load(into, storage_reader=HuggingFaceStorageReader(str(path / "model")), no_dist=True)
    assert all(torch.equal(into[name], tensor) for name, tensor in wanted.items())


def cut_back(source: Path, out: Path, step: int) -> None:
    """Copies a run as it was at a checkpoint."""
    shutil.copytree(source, out)
    (out / "manifest.json").unlink()
    for later, path in checkpoints(out / "checkpoints").items():
        if later > step:
            shutil.rmtree(path)


def test_one_process_goes_on_from_two_ranks(corpus, alone, both, tmp_path):
    cut_back(both / "plain", tmp_path / "run", 10)
    summary = pretrain(RUNS["plain"], corpus / "mixture", tmp_path / "run", device="cpu")
    assert summary["status"] == "finished"
    assert_close_runs(tmp_path / "run", alone / "plain", 1e-5)
    steps = read_metrics(tmp_path / "run")["loss"].to_pylist()
    assert steps[:10] == read_metrics(both / "plain")["loss"].to_pylist()[:10]


def test_two_ranks_go_on_from_one_process(alone, both):
    assert_close_runs(both / "resumed", alone / "plain", 1e-5)
    ours, theirs = (read_metrics(out)["loss"] for out in (both / "resumed", alone / "plain"))
    assert ours[:10].equals(theirs[:10])


def test_two_ranks_start_from_weights_of_one_process(corpus, alone, both, tmp_path):
    run, begin = RUNS["plain"].with_steps(2), alone / "plain"
    pretrain(run, corpus / "mixture", tmp_path / "run", device="cpu", start=begin)
    assert_close_runs(both / "started", tmp_path / "run", 1e-5)
    first, last = (read_metrics(out)["loss"] for out in (both / "started", begin))
    assert first[0].as_py() < last[0].as_py() - 0.5


def write_runs(folder: Path) -> None:
    (folder / "my_runs.py").write_text(
        f"import os\nimport resource\n"
        f"from training_hook.config import HybridConfig\n"
        f"from training_hook.run import PretrainRun\n"
        f"def run():\n    return {RUNS['plain']!r}\n"
        f"def run_where_the_second_disk_is_full():\n"
        f"    if os.environ['RANK'] == '1':\n"
        f"        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        f"    return run()\n"
    )


def command(corpus: Path, out: Path, run: str = "run") -> list[object]:
    paths = ["--mixture", corpus / "mixture", "--out", out, "--device", "cpu"]
    return ["-m", "training_hook.pretrain", f"my_runs:{run}", "--json", *paths]


def ranks_of(launcher: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """Returns the processes of a launcher by their rank."""
    return {int(p.environ()["RANK"]): p for p in psutil.Process(launcher.pid).children()}


def wait_for_step(out: Path, step: int, launcher: subprocess.Popen[str]) -> None:
    while max(checkpoints(out / "checkpoints"), default=0) < step:
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.005)


def test_rank_killed_and_rank_stopped_give_the_undisturbed_losses(corpus, both, tmp_path):
    write_runs(tmp_path)
    out = tmp_path / "run"
    killed = start(command(corpus, out), tmp_path)
    wait_for_step(out, 5, killed)
    ranks_of(killed)[1].kill()
    killed.communicate(timeout=120)
    assert killed.returncode != 0
    assert not (out / "manifest.json").exists()
    stopped = start(command(corpus, out), tmp_path)
    wait_for_step(out, 10, stopped)
    ranks_of(stopped)[1].send_signal(signal.SIGTERM)
    stdout, stderr = stopped.communicate(timeout=120)
    assert stopped.returncode == 0, stderr
    summary = json.loads(stdout)
    assert summary["status"] == "stopped"
    assert 10 <= summary["step"] < 20
    assert Path(summary["checkpoint"]).name == f"step-{summary['step']:08d}"
    last = start(command(corpus, out), tmp_path)
    stdout, stderr = last.communicate(timeout=120)
    assert last.returncode == 0, stderr
    assert json.loads(stdout)["status"] == "finished"
    assert_same_run(out, both / "plain")
    assert not list(out.rglob(".*"))


def test_full_disk_of_one_rank_ends_all_of_them(corpus, tmp_path):
    write_runs(tmp_path)
    out = tmp_path / "run"
    worker = start(command(corpus, out, "run_where_the_second_disk_is_full"), tmp_path)
    _, stderr = worker.communicate(timeout=120)
    assert worker.returncode != 0
    assert "model-00002-of-00002.safetensors could not be written" in stderr
    assert "another rank could not write its part" in stderr
    assert list((out / "checkpoints").iterdir()) == []


def test_batch_that_does_not_divide_into_the_ranks_is_refused():
    check_ranks(tiny_run(), ALONE)
    check_ranks(tiny_run(), Ranks(0, 2))
    with pytest.raises(ValueError, match="wanted a multiple of 6"):
        check_ranks(tiny_run(), Ranks(0, 3))


def test_delayed_scaling_with_weights_by_layer_is_refused():
    with pytest.raises(ValueError, match="fp8_delayed needs weights that stay for a step"):
        replace(fp8_run(), reshard=True)
