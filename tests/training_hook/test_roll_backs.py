import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mixtures.plan import Plan
from tests.training_hook.test_pretrain import LENGTH, assert_same_run, corpus, tiny_run
from training_hook.checkpoint import MODEL, checkpoints
from training_hook.guard import MOST_IN_A_ROW
from training_hook.metrics import read_evaluations, read_metrics
from training_hook.pretrain import pretrain
from training_hook.roll_backs import FILE, Diverged, read_roll_backs

__all__ = ["corpus"]  # a fixture of this module, too


def poison(checkpoint: Path) -> None:
    """Has weights gone wrong in a checkpoint, as if they had before it was saved."""
    (file,) = (checkpoint / MODEL).glob("*.safetensors")
    tensors = load_file(file)
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})


def run_of(**changes):
    given = {"total_tokens": 50 * 4 * LENGTH, "evaluation_interval": 100, "keep_last": 9}
    return tiny_run(**{**given, **changes})


def forget_from(out: Path, step: int) -> None:
    """Takes a run back to where it was before a step, as if it had been killed there."""
    for number, path in checkpoints(out / "checkpoints").items():
        if number >= step:
            shutil.rmtree(path)
    (out / "manifest.json").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def recovered(corpus, tmp_path_factory) -> Path:
    """A run that went on from a bad checkpoint, then from the good one before it, to its end."""
    out = tmp_path_factory.mktemp("recovered") / "run"
    run = run_of()
    pretrain(run, corpus / "mixture", out)
    forget_from(out, 30)
    poison(out / "checkpoints" / "step-00000020")
    assert pretrain(run, corpus / "mixture", out)["status"] == "finished"
    return out


def test_a_run_that_diverges_goes_back_until_it_recovers(recovered):
    first, second = read_roll_backs(recovered)
    assert (first.from_step, first.to_step) == (20 + MOST_IN_A_ROW, 20)
    assert first.samples == (80, 160)
    assert (second.from_step, second.to_step) == (20 + MOST_IN_A_ROW, 10)
    assert second.samples == (120, 240)  # of 30 steps, the last 20 of them past the first ones
    assert "nan" in second.reason
    steps = read_metrics(recovered)
    assert steps["step"].to_pylist() == list(range(1, 51))
    assert not any(steps["skipped"].to_pylist())
    assert np.isfinite(steps["loss"].to_numpy()).all()
    samples = steps["first_sample"].to_pylist()
    assert samples == [*range(0, 40, 4), *range(240, 400, 4)]
    assert read_evaluations(recovered)["step"].unique().to_pylist() == [0, 50]
    assert list(checkpoints(recovered / "checkpoints")) == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("step", [20, 30])
def test_a_run_that_is_killed_after_it_went_back_is_no_other_run(recovered, corpus, tmp_path, step):
    out = tmp_path / "run"
    shutil.copytree(recovered, out)
    forget_from(out, step)
    assert pretrain(run_of(), corpus / "mixture", out)["status"] == "finished"
    assert_same_run(out, recovered)
    assert read_roll_backs(out) == read_roll_backs(recovered)


def test_weights_that_cannot_be_scored_count_as_diverged(corpus, tmp_path):
    run, out = run_of(evaluation_interval=28, checkpoint_interval=8), tmp_path / "run"
    pretrain(run, corpus / "mixture", out)
    forget_from(out, 24)
    poison(out / "checkpoints" / "step-00000016")
    assert pretrain(run, corpus / "mixture", out)["status"] == "finished"
    # step 24 was saved with the same weights, but updates had been left out since step 17
    found = [(record.from_step, record.to_step) for record in read_roll_backs(out)]
    assert found == [(28, 16), (28, 8)]
    assert read_evaluations(out)["step"].unique().to_pylist() == [0, 28, 50]


def test_a_run_without_a_checkpoint_begins_again_with_other_samples(corpus, tmp_path):
    run = run_of(peak_learning_rate=1e30, roll_backs=2, checkpoint_interval=100)
    with pytest.raises(Diverged, match=r"gone back 2 times \(roll_backs is 2\)"):
        pretrain(run, corpus / "mixture", tmp_path / "run")
    records = read_roll_backs(tmp_path / "run")
    assert [record.to_step for record in records] == [0, 0]
    assert records[0].samples[1] == records[1].samples[0]
    assert json.loads((tmp_path / "run" / FILE).read_text())["roll_backs"][0]["to_step"] == 0


def test_a_mixture_without_samples_to_pass_by_ends_a_run(corpus, tmp_path):
    samples = Plan(corpus / "mixture").num_samples
    run = run_of(total_tokens=samples // 4 * 4 * LENGTH, peak_learning_rate=1e30)
    with pytest.raises(Diverged, match=r"its mixture has .* samples left"):
        pretrain(run, corpus / "mixture", tmp_path / "run")
    assert not read_roll_backs(tmp_path / "run")
