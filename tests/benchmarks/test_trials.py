import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.kill_gpu import distance, same_bits
from benchmarks.sft_gpu import is_exact, obeys
from benchmarks.trial_chart import draw
from benchmarks.trial_data import shown_reasoning
from benchmarks.trial_parts import add, pack
from benchmarks.trial_runs import base, hybrid, tiny, to_run, transformer
from synth.families import FAMILIES
from synth.problems import take
from training_hook.checkpoint import checkpoints
from training_hook.config import HybridConfig
from training_hook.import_hf import import_hf
from training_hook.metrics import read_metrics
from training_hook.model import num_parameters
from training_hook.pretrain import pretrain
from training_hook.run import PretrainRun

ROOT = Path(__file__).parents[2]


def start(script: str, work: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"benchmarks.{script}", "--tiny", "--work", str(work), *more]
    environment = os.environ | {"OUT": str(work), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def test_trial_runs_have_the_same_size_and_over_100_million_parameters():
    one, other = num_parameters(hybrid().model), num_parameters(transformer().model)
    assert one > 100e6
    assert abs(other / one - 1) < 0.02
    assert hybrid().total_steps * hybrid().tokens_per_step == hybrid().total_tokens > 100e6


@pytest.mark.parametrize("run", [hybrid(), replace(transformer(), batch_ramp=((0.1, 32),))])
def test_to_run_gives_back_what_was_written(run):
    assert to_run(json.loads(json.dumps(run.parameters()))) == run
    assert isinstance(to_run(run.parameters()).model, HybridConfig)


@pytest.mark.slow
def test_fp8_loss_killed_goes_on_and_compares_the_seeds(trial_data, tmp_path):
    mixture = ("--mixture", str(trial_data / "mixtures" / "trial"))
    first = start("fp8_loss", tmp_path, *mixture)
    second = tmp_path / "hybrid-fp8_tensor-1" / "run"
    while not checkpoints(second / "checkpoints"):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(0.5)
    assert not (second / "manifest.json").exists()  # its process went with the queue
    assert start("fp8_loss", tmp_path, *mixture).wait() == 0
    other = start("fp8_loss", tmp_path, *mixture, "--seeds", "2", "--rate", "5e-4")
    assert other.wait() == 1  # the folders are of another run
    report = json.loads((tmp_path / "fp8_loss.json").read_text())
    names = {f"hybrid-{recipe}-{seed}" for recipe in ("plain", "fp8_tensor") for seed in (1, 2)}
    assert report["trials"].keys() == names
    assert report["failed"] == {}
    for name in names:
        steps = read_metrics(tmp_path / name / "run")["step"].to_pylist()
        assert steps == list(range(1, report["trials"][name]["steps"] + 1))
    found = report["against_plain"]["fp8_tensor"]
    for seed, pair in enumerate(found["pairs"], 1):
        ends = [
            report["trials"][f"hybrid-{recipe}-{seed}"]["held_out"]["parts"]["text"]["loss"]
            for recipe in ("plain", "fp8_tensor")
        ]
        assert pair["held_out"]["text"] == ends[1] - ends[0] != 0
    gaps = found["held_out_loss"]["gaps"]
    assert found["held_out_loss"]["mean_gap"] == pytest.approx(sum(gaps) / 2)
    assert abs(found["held_out_loss"]["mean_gap"]) < 0.05 * ends[0]
    drawn = ElementTree.fromstring(draw(report["trials"], "seconds"))
    lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    assert len({line.get("stroke") for line in lines}) == 2
    log = (tmp_path / "hybrid-fp8_tensor-1" / "log.txt").read_text()
    assert "going on from step-" in log


@pytest.mark.slow
def test_hybrid_transformer_chooses_rates_and_asks_phone_books(trial_data, tmp_path):
    data = ("--mixture", str(trial_data / "mixtures" / "trial"))
    data += ("--vocabulary", str(trial_data / "vocabulary"))
    more = ("--sweep", "--equal-time", "--seeds", "1")
    assert start("hybrid_transformer", tmp_path, *data, *more).wait() == 0
    report = json.loads((tmp_path / "hybrid_transformer.json").read_text())
    assert report["failed"] == {}
    losses = report["sweep"]["held_out_loss"]
    for kind, name in (("hybrid", "trial_hybrid"), ("transformer", "trial_transformer")):
        best = min(losses[kind], key=losses[kind].__getitem__)
        assert report["rates"][name] == float(best)
        assert report["trials"][f"{kind}-plain-1"]["peak_learning_rate"] == float(best)
    for trial in report["trials"].values():
        assert [group["entries"] for group in trial["phonebook"]["groups"]] == [2, 4]
        assert set(trial["held_out"]["parts"]) == {"text", "phonebook"}
    assert len(report["transformer_less_hybrid"]["pairs"]) == 1
    longer = report["equal_time"]
    assert isinstance(longer, str) or longer["trial"]["tokens"] > 0


@pytest.mark.slow
def test_kill_gpu_tells_the_same_bits_and_adds_up(trial_data, tmp_path):
    mixture = ("--mixture", str(trial_data / "mixtures" / "base"), "--kills", "2")
    assert start("kill_gpu", tmp_path, *mixture, "--only", "deterministic").wait() == 0
    report = json.loads((tmp_path / "kill_gpu.json").read_text())
    found = report["modes"]["deterministic"]
    assert report["verdicts"]["deterministic_bit_equal"] is True
    for pair in ("first_second", "first_killed", "second_killed"):
        assert found[pair]["same_bits"] == dict.fromkeys(
            ("steps", "evaluations", "model", "exp_avg", "exp_avg_sq"), True
        )
        assert found[pair]["distance"]["largest"] == 0
    for kind in ("first", "second", "killed"):
        assert found[kind]["tokens_add_up"] is True
    assert found["killed"]["kills"]
    log = (tmp_path / "kill-deterministic-killed" / "log.txt").read_text()
    assert log.count("going on from step-") == len(found["killed"]["kills"])


@pytest.mark.slow
def test_kill_gpu_distance_and_bits_see_another_seed(trial_data, tmp_path):
    run = replace(tiny_base(trial_data), checkpoint_interval=24)
    for seed in (1, 2):
        mixture = trial_data / "mixtures" / "base"
        pretrain(replace(run, seed=seed), mixture, tmp_path / str(seed), device="cpu")
    one, other = tmp_path / "1", tmp_path / "2"
    assert not any(same_bits(one, other).values())
    assert distance(one, other)["first_step_that_differs"] == 1
    assert distance(one, other)["largest"] > 0
    assert all(same_bits(one, one).values())


def tiny_base(data: Path) -> PretrainRun:
    run = base()
    model = replace(run.model, vocab_size=512)
    return tiny(replace(run, model=model, sequence_length=256))


@pytest.mark.slow
def test_sft_gpu_tunes_and_leaves_a_model_for_others(trial_data, tmp_path):
    data = ("--data", str(trial_data), "--seeds", "1", "--questions", "2")
    assert start("sft_gpu", tmp_path, *data).wait() == 0
    report = json.loads((tmp_path / "sft_gpu.json").read_text())
    assert report["before"]["asked"] == 4
    after = report["after"]["1"]
    for kind in ("on", "off"):
        assert after[kind]["asked"] == 4
        assert after[kind]["obeys"]["asked"] == 4
    assert after["held_out_loss"]["after"]["total"] < after["held_out_loss"]["before"]["total"]
    for number in range(1, report["model_parts"] + 1):
        assert (tmp_path / f"part{number}").stat().st_size < 16 << 20
        complete = add(tmp_path / f"part{number}", tmp_path / "joined")
    assert complete
    config, tensors = import_hf(tmp_path / "joined" / "model")
    assert config.hybrid_override_pattern == "-M*--"
    assert tensors["lm_head.weight"].dtype == torch.bfloat16


def test_obeys_asks_for_what_the_template_says():
    assert obeys("1 + 1 = 2.\n</think>\n\n2\n", True, True)
    assert not obeys("1 + 1 = 2.\n</think>\n\n2\n", True, False)
    assert not obeys("1 + 1 = 2.\n</think>\n\n2\n", False, True)
    assert not obeys("</think>\n\n2\n", True, True)
    assert not obeys("1 + 1 = 2.\n</think>\n\n", True, True)
    assert not obeys("1 + 1 = 2.\n</think>\n</think>\n2", True, True)
    assert not obeys("2\n", True, True)
    assert obeys("2\n", False, True)
    assert not obeys("<think>2\n", False, True)
    assert not obeys("", False, True)


def test_is_exact_takes_integers_only():
    assert is_exact("12", "12")
    assert is_exact("-3", "-3")
    assert not is_exact("12", "12.0")
    assert not is_exact("12", "13")
    assert not is_exact("12", None)


def test_shown_reasoning_has_the_stated_shares():
    family = FAMILIES["chain_sum"]
    problems = take(family, "sft", 3, 2_000)
    shown = [shown_reasoning(problem, "one two three four") for problem in problems]
    assert shown.count(None) / 2_000 == pytest.approx(0.10, abs=0.02)
    cut = [text for text in shown if text not in (None, "one two three four")]
    assert len(cut) / 2_000 == pytest.approx(0.05, abs=0.015)
    assert set(cut) <= {"one", "one two", "one two three"}


def test_parts_come_together_in_any_order(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "ids").write_bytes(random.Random(0).randbytes(5_000))
    (root / "b").write_text("two")
    note = pack(root, ["a", "b"], tmp_path / "parts", 2_000)
    parts = [tmp_path / "parts" / f"part{n}" for n in range(1, len(note["parts"]) + 1)]
    assert len(parts) == 3
    assert [add(part, tmp_path / "to") for part in (parts[2], parts[0], parts[2])] == [False] * 3
    assert add(parts[1], tmp_path / "to")
    assert add(parts[0], tmp_path / "to")
    assert (tmp_path / "to" / "a" / "ids").read_bytes() == (root / "a" / "ids").read_bytes()
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a", "b", "parts.json"]
    broken = bytearray(parts[0].read_bytes())
    broken[-1] ^= 1
    parts[0].write_bytes(broken)
    with pytest.raises(ValueError, match="is none of its 3 parts"):
        add(parts[0], tmp_path / "other")
