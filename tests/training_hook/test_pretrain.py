import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mixtures.lineage import lineage, samples_of, seen
from mixtures.masked import mask
from mixtures.stream import Batch, Stream
from mixtures.vocabulary_training import train_vocabulary
from pipelines.load import load
from tests.training_hook.small_corpus import LENGTH, VOCABULARY, make_corpus, tiny_run
from training_hook.batches import Prefetch, document_ids, host_batch
from training_hook.checkpoint import checkpoints, read_checkpoint
from training_hook.guard import MOST_IN_A_ROW, Guard
from training_hook.metrics import FOLDER, read_evaluations, read_metrics
from training_hook.model import HybridModel
from training_hook.optimizer import adamw, set_learning_rate
from training_hook.pretrain import main, pretrain
from training_hook.run import PretrainRun
from training_hook.step import train_step


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A vocabulary and two mixtures of it."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that the tests start
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> Path:
    """The output of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert pretrain(tiny_run(), corpus / "mixture", out)["status"] == "finished"
    return out


def assert_same_run(out: Path, other: Path) -> None:
    """Asserts that two runs agree bit for bit in everything but their clocks."""
    ours, theirs = (
        read_metrics(o).drop_columns(["seconds", "tokens_per_second"]) for o in (out, other)
    )
    assert ours.equals(theirs)
    assert read_evaluations(out).equals(read_evaluations(other))
    last, other_last = (max(checkpoints(o / "checkpoints").values()) for o in (out, other))
    assert last.name == other_last.name
    for file in last.rglob("*.safetensors"):
        there = load_file(other_last / file.relative_to(last))
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, there[name]), (file, name)


def test_pretrain_learns_and_says_what_it_did(corpus, unbroken):
    summary = json.loads((unbroken / "manifest.json").read_text())
    assert summary["status"] == "finished"
    assert summary["step"] == summary["total_steps"] == 40
    assert summary["tokens"] == 40 * 4 * LENGTH
    before, after = summary["bits_per_byte"]["before"], summary["bits_per_byte"]["after"]
    assert before.keys() == after.keys() == {"code", "prose", "total"}
    for part in before:
        assert after[part] < 0.9 * before[part]
    steps = read_metrics(unbroken)
    assert steps["step"].to_pylist() == list(range(1, 41))
    assert steps["first_sample"].to_pylist() == list(range(0, 160, 4))
    assert np.mean(steps["loss"][-5:]) < 0.85 * steps["loss"][0].as_py()
    assert steps["learning_rate"][-1].as_py() == pytest.approx(1e-4)
    assert read_evaluations(unbroken)["step"].unique().to_pylist() == [0, 15, 30, 40]
    assert list(checkpoints(unbroken / "checkpoints")) == [30, 40]
    found = lineage(corpus / "mixture", steps["first_sample"][7].as_py())
    assert all(document.part in ("code", "prose") for document in found)


def test_pretrain_of_a_finished_run_trains_nothing(corpus, unbroken):
    before = sorted((p, p.stat().st_mtime_ns) for p in unbroken.rglob("*"))
    again = pretrain(tiny_run(), corpus / "mixture", unbroken)
    assert (
        again["bits_per_byte"]
        == json.loads((unbroken / "manifest.json").read_text())["bits_per_byte"]
    )
    assert Path(again["checkpoint"]) == unbroken / "checkpoints" / "step-00000040"
    assert sorted((p, p.stat().st_mtime_ns) for p in unbroken.rglob("*")) == before


RUN = """
from pathlib import Path
import torch
from training_hook.pretrain import pretrain
torch.set_num_threads(1)
pretrain(run, Path(mixture), Path(out))
"""


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_hook.pretrain"])
    return context


def rows_written(out: Path) -> int:
    return max((int(p.stem[-8:]) for p in (out / "checkpoints").glob("step-*")), default=0)


@pytest.mark.slow
def test_pretrain_killed_again_and_again_gives_the_unbroken_losses(
    corpus, unbroken, processes, tmp_path
):
    out = tmp_path / "run"
    settings = {"run": tiny_run(), "mixture": str(corpus / "mixture"), "out": str(out)}
    rng = random.Random(0)
    for reached in (0, 10, 20, 30):
        worker = processes.Process(target=exec, args=(RUN, dict(settings)))
        worker.start()
        while rows_written(out) < reached:
            assert worker.is_alive() or rows_written(out) >= reached
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2) if reached else 1.0)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    assert pretrain(tiny_run(), corpus / "mixture", out)["status"] == "finished"
    assert_same_run(out, unbroken)
    assert not list(out.rglob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pretrain_told_to_stop_saves_and_exits_with_0(corpus, unbroken, tmp_path, number):
    (tmp_path / "my_runs.py").write_text(
        f"from training_hook.config import HybridConfig\n"
        f"from training_hook.run import PretrainRun\n"
        f"def run():\n    return {tiny_run()!r}\n"
    )
    out = tmp_path / "run"
    command = [sys.executable, "-m", "training_hook.pretrain", "my_runs:run", "--json"]
    root = Path(__file__).parents[2]
    worker = subprocess.Popen(
        [*command, "--mixture", corpus / "mixture", "--out", out, "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{tmp_path}"},
    )
    while rows_written(out) < 10:
        assert worker.poll() is None
        time.sleep(0.005)
    worker.send_signal(number)
    stdout, stderr = worker.communicate(timeout=120)
    assert worker.returncode == 0, stderr
    assert f"got {number.name}" in stderr
    summary = json.loads(stdout)
    assert summary["status"] == "stopped"
    assert 10 <= summary["step"] < 40
    assert Path(summary["checkpoint"]).name == f"step-{summary['step']:08d}"
    assert read_metrics(out)["step"].to_pylist() == list(range(1, summary["step"] + 1))
    pretrain(tiny_run(), corpus / "mixture", out)
    assert_same_run(out, unbroken)


def test_pretrain_from_an_earlier_checkpoint_makes_the_later_rows_again(corpus, unbroken, tmp_path):
    out = tmp_path / "run"
    run = tiny_run(keep_last=5)  # no loss depends on it
    pretrain(run, corpus / "mixture", out)
    found = checkpoints(out / "checkpoints")
    assert list(found) == [10, 20, 30, 40]
    for step in (20, 30, 40):
        for file in sorted(found[step].rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        found[step].rmdir()
    (out / "manifest.json").unlink()
    assert pretrain(tiny_run(), corpus / "mixture", out)["status"] == "finished"
    assert_same_run(out, unbroken)


def test_pretrain_goes_on_without_a_document_that_was_masked(corpus, unbroken, tmp_path):
    for name in ("code-tokens", "prose-tokens", "mixture"):
        shutil.copytree(corpus / name, tmp_path / name)
    mixture, out = tmp_path / "mixture", tmp_path / "run"
    pretrain(tiny_run(keep_last=5), mixture, out)
    found = checkpoints(out / "checkpoints")
    for step in (30, 40):
        shutil.rmtree(found[step])
    (out / "manifest.json").unlink()
    (gone, *_) = lineage(mixture, 100)
    mask(tmp_path / f"{gone.part}-tokens", [gone.document_id])
    assert pretrain(tiny_run(keep_last=5), mixture, out)["status"] == "finished"
    state = read_checkpoint(checkpoints(out / "checkpoints")[40])["stream"]
    assert [samples for samples, _ in state["blanked"]] == [80]
    planned = samples_of(mixture, gone.document_id, before=160)
    assert seen(mixture, gone.document_id, state) == [index for index in planned if index < 80]
    ours, theirs = (read_metrics(of).to_pylist() for of in (out, unbroken))
    touched = {index // 4 + 1 for index in planned if index >= 80}
    for row, other in zip(ours, theirs, strict=True):
        assert (row["target_tokens"] < other["target_tokens"]) == (row["step"] in touched)
        assert row["step"] > 20 or row["loss"] == other["loss"]


def test_pretrain_into_another_runs_folder_is_refused(corpus, unbroken, tmp_path):
    other = tiny_run(peak_learning_rate=2e-2)
    with pytest.raises(ValueError, match=r"peak_learning_rate: 0\.01 there, 0\.02 here"):
        pretrain(other, corpus / "mixture", unbroken)
    with pytest.raises(ValueError, match="was trained on another mixture"):
        pretrain(tiny_run(), corpus / "other-mixture", unbroken)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no run's folder and not empty"):
        pretrain(tiny_run(), corpus / "mixture", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_pretrain_into_a_folder_where_one_was_killed_at_once_goes_on(corpus, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".tmp-77-run.json").write_text("{")
    assert pretrain(tiny_run().with_steps(1), corpus / "mixture", out)["step"] == 1
    assert not list(out.rglob(".*"))


def test_run_folder_that_was_moved_is_still_its_runs(corpus, tmp_path):
    first = pretrain(tiny_run().with_steps(1), corpus / "mixture", tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    again = pretrain(tiny_run().with_steps(1), corpus / "mixture", tmp_path / "moved")
    assert again["loss"] == first["loss"]
    assert Path(again["checkpoint"]).is_dir()


def test_checkpoint_of_another_run_in_the_folder_is_refused(corpus, unbroken, tmp_path):
    out = tmp_path / "run"
    pretrain(tiny_run().with_steps(1), corpus / "mixture", out)
    (out / "manifest.json").unlink()
    path = out / "checkpoints" / "step-00000001"
    manifest = read_checkpoint(path)
    manifest["run"]["model"]["hidden_size"] = 32
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="belongs to another run; model: "):
        pretrain(tiny_run().with_steps(1), corpus / "mixture", out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 64}, "was mixed for 48"),
        ({"total_tokens": 10**9}, "Mix more, or train fewer steps"),
        (
            {"model": replace(tiny_run().model, vocab_size=64)},
            "vocab_size is 64, the tokens of .* go up to 512",
        ),
    ],
)
def test_pretrain_of_a_run_that_does_not_fit_the_mixture_is_refused(
    corpus, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        pretrain(tiny_run(**changes), corpus / "mixture", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pretrain_with_another_vocabulary_is_refused(corpus, tmp_path):
    vocabulary = tmp_path / "vocabulary"
    train_vocabulary([corpus / "prose"], vocabulary, size=VOCABULARY, sample_bytes=50_000)
    with pytest.raises(ValueError, match="is not the vocabulary of"):
        pretrain(tiny_run(), corpus / "mixture", tmp_path / "run", vocabulary)


def test_pretrain_that_diverges_names_step_and_samples(corpus, tmp_path):
    run = tiny_run(
        peak_learning_rate=1e30,
        warmup_share=0.0,
        roll_backs=0,
        checkpoint_interval=100,
        evaluation_interval=100,
    )
    with pytest.raises(FloatingPointError, match="Last checkpoint: none") as error:
        pretrain(run, corpus / "mixture", tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    assert metrics["skipped"].to_pylist()[-MOST_IN_A_ROW - 1 :] == [False] + [True] * MOST_IN_A_ROW
    step = metrics["step"].to_pylist()[-1]
    first = 4 * (step - 1)
    assert f"step {step} has loss" in str(error.value)
    assert f"samples are {list(range(first, first + 4))}" in str(error.value)
    assert checkpoints(tmp_path / "run" / "checkpoints") == {}


def test_pretrain_that_passes_by_spikes_goes_on_with_the_same_numbers(corpus, tmp_path):
    run = tiny_run(spike_factor=1.1)
    out, again = tmp_path / "run", tmp_path / "again"
    pretrain(run, corpus / "mixture", out)
    skipped = read_metrics(out)["skipped"].to_pylist()
    assert not any(skipped[:20])
    assert any(skipped[20:30])
    assert any(skipped[30:])
    shutil.copytree(out, again)
    (again / "manifest.json").unlink()
    shutil.rmtree(again / "checkpoints" / "step-00000040")
    assert pretrain(run, corpus / "mixture", again)["status"] == "finished"
    assert_same_run(again, out)


def test_pretrain_with_deterministic_algorithms_gives_the_same_numbers(corpus, tmp_path, unbroken):
    out = tmp_path / "run"
    assert pretrain(tiny_run(deterministic=True), corpus / "mixture", out)["status"] == "finished"
    assert_same_run(out, unbroken)
    assert not torch.are_deterministic_algorithms_enabled()


def test_pretrain_in_bfloat16_keeps_master_weights_in_float32(corpus, tmp_path):
    run = tiny_run(precision="bfloat16").with_steps(3)
    summary = pretrain(run, corpus / "mixture", tmp_path / "run")
    weights = load_file(Path(summary["checkpoint"]) / "model" / "model-00001-of-00001.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any(bool((w != w.bfloat16().float()).any()) for w in weights.values())


def batch_with_mask(rows: int, seed: int) -> Batch:
    """A batch whose rows have very different numbers of targets, and documents inside."""
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, LENGTH)) < np.linspace(0.02, 1.0, rows)[:, None]
    mask[:, 0] = True
    boundaries = np.full((rows, 4), LENGTH + 1, np.int32)
    boundaries[:, 0], boundaries[:, 1] = 0, rng.integers(5, LENGTH - 5, rows)
    tokens = rng.integers(3, VOCABULARY, (rows, LENGTH + 1)).astype(np.uint16)
    return Batch(tokens, mask, boundaries, np.arange(rows))


def fresh_model() -> HybridModel:
    model = HybridModel(tiny_run().model)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def guard() -> Guard:
    return Guard(0.0, torch.device("cpu"))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_step_in_micro_batches_is_the_step_of_the_whole_batch(micro_batch_size):
    batch = host_batch(batch_with_mask(8, 0), {}, pin=False)
    results = []
    for size in (8, micro_batch_size):
        model = fresh_model()
        optimizer = adamw(model, (0.9, 0.95), 1e-8, 0.1)
        set_learning_rate(optimizer, 1e-2)
        run = tiny_run(batch_size=8, micro_batch_size=size, clip_norm=0.5)
        loss, norm, *_ = train_step(model, optimizer, guard(), batch, run)
        results.append((loss, norm, [p.detach().clone() for p in model.parameters()]))
    (loss, norm, weights), (other_loss, other_norm, other_weights) = results
    torch.testing.assert_close(other_loss, loss)
    torch.testing.assert_close(other_norm, norm)
    torch.testing.assert_close(other_weights, weights, rtol=1e-4, atol=1e-4)


def test_step_loss_weighs_every_target_token_alike():
    stream_batch = batch_with_mask(8, 1)
    batch = host_batch(stream_batch, {}, pin=False)
    assert batch.num_targets == stream_batch.loss_mask.sum()
    model = fresh_model()
    with torch.no_grad():
        tokens = batch.tokens.long()
        ids = document_ids(batch.boundaries, LENGTH)
        likelihood = torch.log_softmax(model(tokens[:, :-1], ids).double(), dim=-1)
        nats = -likelihood.gather(2, tokens[:, 1:, None])[..., 0]
    mask = torch.from_numpy(stream_batch.loss_mask)
    wanted = nats[mask].mean()
    mean_of_means = torch.stack([n[m].mean() for n, m in zip(nats, mask, strict=True)]).mean()
    assert abs(wanted - mean_of_means) > 1e-3
    optimizer = adamw(model, (0.9, 0.95), 1e-8, 0.1)
    loss = train_step(model, optimizer, guard(), batch, tiny_run(micro_batch_size=1)).loss
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_step_clips_the_gradient_of_the_global_batch():
    batch = host_batch(batch_with_mask(4, 2), {}, pin=False)
    model, free = fresh_model(), fresh_model()
    ids = document_ids(batch.boundaries, LENGTH)
    tokens = batch.tokens.long()
    nats, count, _ = free.loss(tokens[:, :-1], tokens[:, 1:], batch.loss_mask, ids)
    (nats / count).backward()
    gradients = {name: p.grad for name, p in free.named_parameters()}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    optimizer = adamw(model, (0.0, 0.95), 1e-8, 0.1)
    run = tiny_run(clip_norm=norm.item() / 10)
    result = train_step(model, optimizer, guard(), batch, run)
    assert result.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        first = optimizer.state[parameter]["exp_avg"]  # with beta 0 it is the clipped gradient
        torch.testing.assert_close(first, gradients[name] / 10, rtol=1e-3, atol=1e-6)


def test_step_without_targets_is_refused():
    empty = batch_with_mask(2, 0)
    empty.loss_mask[:] = False
    batch = host_batch(empty, {}, pin=False)
    model = fresh_model()
    with pytest.raises(ValueError, match=r"samples \[0, 1\] have no target tokens"):
        train_step(model, adamw(model, (0.9, 0.95), 1e-8, 0.1), guard(), batch, tiny_run())


def test_document_ids_rise_at_boundaries():
    boundaries = torch.tensor([[0, 3, 4, 7], [2, 6, 7, 7], [0, 7, 7, 7]])
    assert document_ids(boundaries, 6).tolist() == [
        [1, 1, 1, 2, 3, 3],
        [0, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]


def test_prefetch_gives_each_batch_with_the_state_behind_it(corpus):
    reference = Stream(corpus / "mixture", 4)
    batches = Prefetch(Stream(corpus / "mixture", 4), False, [4] * 3)
    for _ in range(3):
        wanted, batch = next(reference), batches.next()
        time.sleep(0.01)  # the thread reads ahead meanwhile
        assert np.array_equal(batch.tokens.numpy(), wanted.tokens.astype(np.int32))
        assert batch.stream_state == reference.state_dict()
    batches.close()
    resumed = Stream(corpus / "mixture", 4)
    resumed.load_state_dict(batch.stream_state)
    assert np.array_equal(next(resumed).tokens, next(reference).tokens)


def test_prefetch_at_the_end_of_the_mixture_says_so(corpus):
    stream = Stream(corpus / "mixture", 4)
    stream = Stream(corpus / "mixture", 4, start=stream.num_samples - 5)
    batches = Prefetch(stream, False, [4, 4])
    batches.next()
    with pytest.raises(ValueError, match="the stream ended before the run"):
        batches.next()
    batches.close()


def test_prefetch_raises_what_the_stream_raised():
    class Broken:
        def take(self, batch_size):
            raise OSError("the disk is gone")

    before = threading.active_count()
    batches = Prefetch(Broken(), False, [4])  # pyright: ignore[reportArgumentType]
    with pytest.raises(OSError, match="the disk is gone"):
        batches.next()
    batches.close()
    assert threading.active_count() == before


def test_metrics_of_an_unfinished_run_can_be_read_while_it_writes(corpus, tmp_path):
    assert read_metrics(tmp_path).num_rows == 0
    assert read_evaluations(tmp_path).num_rows == 0
    pretrain(tiny_run().with_steps(12), corpus / "mixture", tmp_path / "run")
    parts = sorted(p.name for p in (tmp_path / "run" / FOLDER).glob("steps-*"))
    assert parts == ["steps-00000001.parquet", "steps-00000011.parquet"]


def test_run_fingerprint_follows_what_decides_the_losses():
    run = tiny_run()
    assert replace(run, keep_last=7).fingerprint() == run.fingerprint()
    assert replace(run, checkpoint_interval=3).fingerprint() == run.fingerprint()
    for changes in ({"seed": 5}, {"micro_batch_size": 4}, {"betas": (0.9, 0.99)}):
        assert replace(run, **changes).fingerprint() != run.fingerprint()
    other = replace(run, model=replace(run.model, hidden_size=48))
    assert other.fingerprint() != run.fingerprint()
    assert copy.deepcopy(run).fingerprint() == run.fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 3}, "batch_size 3 is not a multiple of micro_batch_size 2"),
        ({"batch_size": 0}, "batch_size is 0; wanted 1 or more"),
        ({"precision": "float16"}, "wanted one of: float32, bfloat16"),
        ({"backend": "magic"}, "wanted one of: eager"),
        ({"clip_norm": 0.0}, "clip_norm is 0"),
        ({"decay_shape": "square"}, "decay_shape is 'square'"),
        ({"warmup_share": 0.9}, "more than the whole run"),
    ],
)
def test_run_with_wrong_settings_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_run(**changes)


@pytest.mark.parametrize(
    "name", ["hybrid_tiny", "hybrid_20m", "hybrid_150m", "hybrid_1b", "hybrid_8b"]
)
def test_published_run_loads_and_can_be_planned(name, capsys):
    run = load(f"flows.runs.{name}:run", "run", PretrainRun)
    assert run.name == name
    assert main([f"flows.runs.{name}:run", "--dry-run", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == run.total_steps * run.tokens_per_step >= run.total_tokens
    assert found["state_bytes"] == 16 * found["parameters"]
    assert 12 <= found["checkpoint_host_bytes"] / found["parameters"] < 24
    assert found["activation_bytes"] > 0
    assert found["seconds_at_40_percent"] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "flows.runs.hybrid_tiny",
            "file.py:function, for example my_run.py:run",
        ),
        ("flows.runs.missing:run", "there is no module flows.runs.missing"),
        ("flows.runs.hybrid_tiny:walk", "has no 'walk'; it has: run"),
        (
            "flows.runs.hybrid_tiny:HybridConfig",
            "missing a required argument: 'hybrid_override_pattern'",
        ),
    ],
)
def test_run_that_is_none_is_wrong_usage(name, message, capsys):
    with pytest.raises(ValueError, match=message):
        load(name, "run", PretrainRun)
    with pytest.raises(SystemExit) as error:
        main([name, "--dry-run"])
    assert error.value.code == 2
    assert message in capsys.readouterr().err
