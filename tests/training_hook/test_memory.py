import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows.runs.hybrid_1b import run as hybrid_1b
from flows.runs.hybrid_8b import run as hybrid_8b
from tests.training_hook.small_corpus import tiny_run
from training_hook.loop import build_model
from training_hook.memory import GIB, STATE_BYTES, check_memory, count_memory
from training_hook.optimizer import adamw, moments
from training_hook.run import PretrainRun

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "bench_gpu.json"


def test_memory_of_what_is_certain_is_what_is_there():
    """Weights, gradients, moments and held casts of a real model, byte for byte."""
    for run in (
        tiny_run(),
        tiny_run(precision="bfloat16"),
        tiny_run(model=replace(tiny_run().model, tie_word_embeddings=True), precision="bfloat16"),
    ):
        model = build_model(run)
        model.reset_parameters(torch.Generator().manual_seed(0))
        optimizer = adamw(model, run.betas, run.epsilon, run.weight_decay)
        tokens = torch.zeros((run.micro_batch_size, run.sequence_length), dtype=torch.long)
        with model.held_weights():
            model.loss(tokens, tokens).total.backward()
            casts = sum(buffer.nbytes for buffer in model.buffers())
        parameters = dict(model.named_parameters())
        state = sum(p.nbytes + p.grad.nbytes for p in parameters.values() if p.grad is not None)
        for tensors in moments(model, optimizer).values():
            state += sum(tensor.nbytes for tensor in tensors.values())
        memory = count_memory(run)
        assert (memory.state, memory.casts) == (state, casts)


def test_memory_of_fp8_casts_is_what_is_held():
    """Beside the casts there are scales, a number for each tensor."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "mamba_head_dim": 16, "head_dim": 16}
    shape = replace(tiny_run().model, **sizes, mamba_num_heads=4, hybrid_override_pattern="M-*-M-")
    run = tiny_run(
        model=shape,
        precision="bfloat16",
        linear_recipe="fp8_tensor",
        plain_first_layers=1,
        plain_last_layers=1,
    )
    model = build_model(run)
    model.reset_parameters(torch.Generator().manual_seed(0))
    with model.held_weights():
        casts = sum(b.nbytes for b in model.buffers())
        scales = sum(b.nbytes for b in model.buffers() if b.dtype == torch.float32)
    assert count_memory(run).casts == casts - scales


@pytest.mark.parametrize("row", ["bf16", "fp8_tensor", "fp8_delayed"])
def test_estimate_is_just_below_what_was_measured(row):
    """The benchmark's own runs: below, so that a warning is true, and by less than 6%."""
    measured = json.loads(RESULTS.read_text())["rows"][row]["micro_batches"]["8"]
    assert measured["parameters"] * STATE_BYTES == count_memory(hybrid_1b()).state
    run = replace(hybrid_1b(), linear_recipe=measured["linear_recipe"])
    peak = measured["peak_memory_gib"] * GIB
    memory = count_memory(run)
    assert 0.94 * peak < memory.estimate < peak
    assert memory.certain < 0.5 * peak


def test_estimate_follows_micro_batch_and_precision():
    run = hybrid_1b()
    once, twice = (count_memory(replace(run, micro_batch_size=size)) for size in (1, 2))
    assert twice.activations == 2 * once.activations
    assert twice.certain == once.certain
    plain = count_memory(replace(run, linear_recipe="plain"))
    assert plain.activations > twice.activations
    assert count_memory(replace(run, precision="float32", linear_recipe="plain")).casts == 0


def test_run_that_cannot_fit_is_refused_with_the_numbers():
    run = hybrid_8b()
    need = count_memory(run)
    assert need.certain > 79 * GIB
    with pytest.raises(ValueError, match=r"at least \d+\.\d GiB of a GPU's memory") as refused:
        check_memory(run, 79 * GIB)
    message = str(refused.value)
    for words in (f"{need.certain / GIB:.1f} GiB", "79.0 GiB are free", "a smaller model"):
        assert words in message
    check_memory(run, need.estimate)


def test_run_is_refused_only_for_what_is_certain(capsys):
    run = hybrid_1b()
    need = count_memory(run)
    check_memory(run, need.certain)
    said = capsys.readouterr().err
    assert "34.8 GiB" in said
    assert "take a smaller micro_batch_size" in said
    check_memory(run, need.estimate)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="before any activation"):
        check_memory(run, need.certain - 1)


def test_memory_of_several_gpus_is_a_share_and_what_is_gathered():
    run = hybrid_8b()
    alone, parameters = count_memory(run), count_memory(run).state // STATE_BYTES
    gathered = count_memory(run, 8)
    assert gathered.state == 12 * parameters // 8 + 8 * parameters
    assert gathered.casts == alone.casts
    spread = count_memory(replace(run, reshard=True), 8)
    assert (spread.state, spread.casts) == (2 * parameters, 0)
    assert count_memory(replace(run, reshard=True)) == alone  # of one GPU it says nothing
    with pytest.raises(ValueError, match=r"several GPUs \(torchrun\) and reshard=True"):
        check_memory(run, 60 * GIB)
    with pytest.raises(ValueError, match="more memory, reshard=True, or a smaller model"):
        check_memory(run, 60 * GIB, 8)
    check_memory(replace(run, reshard=True), 60 * GIB, 8)


def test_warning_names_fp8_where_the_run_is_plain(capsys):
    run: PretrainRun = replace(hybrid_1b(), linear_recipe="plain")
    check_memory(run, 30 * GIB)
    assert "linear_recipe='fp8_tensor'" in capsys.readouterr().err
