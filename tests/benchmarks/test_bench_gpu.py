"""The GPU benchmark's runner, table and stand-ins for peers, as far as a CPU goes."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bench_gpu import Results, groups, made, run_group
from benchmarks.gpu_rows import ROWS
from benchmarks.kernel_errors import ALLOWED, CASES, Allowed, too_large, worst
from benchmarks.kernel_profile import kind_of, own_kernels
from benchmarks.peer_nemotron import Nemotron
from benchmarks.training_runs import short_1b, tiny_1b, transformer_of
from benchmarks.training_steps import cut, drawn_model
from benchmarks.training_table import table
from training_hook.batches import HostBatch, document_ids
from training_hook.model import num_parameters

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "bench_gpu.json"


def options_of(folder: Path, mixture: Path) -> argparse.Namespace:
    return argparse.Namespace(out=folder, mixture=mixture, peers=None, tiny=True)


def measured(rate: float, tokens: int = 16_384) -> dict[str, Any]:
    return {
        "tokens_per_second": rate,
        "mfu": rate / 2e5,
        "peak_memory_gib": 37.04,
        "micro_batch_size": 2,
        "sequence_length": tokens // 2,
        "step_ms": {"median": 131_072 / rate * 1e3},
    }


def test_table_says_shares_of_ours_misses_failures_and_milliseconds():
    profiled = {**measured(91_000), "kinds_ms": {"matrix products": 900.4, "other": 0.1}}
    content = {
        "device": "some GPU",
        "commit": "abc",
        "rows": {
            "errors": {"worst": {"scan": {"forward": 0.0031, "gradients": 0.0047}}},
            "kernels": {
                "norm": {
                    "16 x 8": {
                        "kernel": {"forward_and_backward_us": 10.5},
                        "compiled": {"forward_and_backward_us": 21.0},
                    }
                }
            },
            "bf16": {"micro_batches": {"8": profiled, "1": measured(80_000)}},
            "fp8_tensor": {"micro_batches": {"8": measured(104_000)}},
            "torchao_tensor": {"error": "Traceback\n  some line\nValueError: no such recipe"},
            "nemotron_h": {"micro_batches": {"8": measured(500)}, "ours": measured(20_000)},
        },
    }
    lines = table(content, ROWS).splitlines()
    assert lines[0] == "some GPU, commit abc"
    bf16, one, fp8, torchao, nemotron = lines[2:7]
    assert bf16.split()[-5:] == ["91,000", "1.000", "45.5%", "37.0", "90,000"]
    assert one.split()[-4:] == ["80,000", "1.000", "40.0%", "37.0"]
    assert fp8.split()[-6:] == ["104,000", "1.143", "52.0%", "37.0", "105,000", "missed"]
    assert torchao.split()[-1] == "failed"
    assert "0.025" in nemotron
    assert "scan: error against float64 0.00310 forward, 0.00470 gradients" in lines
    assert "norm, 16 x 8: forward and backward 10.5 us, plain PyTorch compiled 21.0 us" in lines
    assert "torchao_tensor failed: ValueError: no such recipe" in lines
    assert lines[-1] == "bf16, 8 micro batches, 1440 ms a step: matrix products 900"


def test_rows_side_by_side_fit_in_memory_and_none_is_left_out():
    for memory in (0.0, 79.2, 139.8):
        found = list(groups(list(ROWS), memory))
        assert [row for group in found for row in group] == list(ROWS)
        for group in found:
            assert len(group) == 1 or sum(ROWS[row].gib for row in group) <= memory
        assert found[-1] == ["nemotron_h"]
    assert found[:2] == [
        ["errors", "kernels", "bf16", "fp8_tensor", "mamba_ssm"],
        ["transformer_bf16", "transformer_fp8", "torchao_tensor"],
    ]


def test_results_go_on_with_the_same_code_and_repeat_failures(tmp_path):
    path, head = tmp_path / "bench_gpu.json", {"commit": "a"}
    first = Results(path, head)
    first.add("bf16", {"row_s": 1.0, "micro_batches": {}})
    first.add("kernels", {"row_s": 1.0, "error": "ValueError: too large"})
    assert Results(path, head).missing(["bf16", "kernels", "fp8_block"]) == ["kernels", "fp8_block"]
    assert Results(path, {"commit": "b"}).missing(["bf16"]) == ["bf16"]


def test_folder_that_was_begun_is_made_again(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        made(tmp_path / "peers", fail)
    folder = made(tmp_path / "peers", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert made(folder, fail) == folder


@pytest.mark.slow
def test_row_that_fails_is_recorded_with_its_traceback_and_the_next_one_runs(tmp_path):
    results = Results(tmp_path / "bench_gpu.json", {})
    options = options_of(tmp_path, tmp_path / "no mixture")
    run_group(["bf16", "fp8_tensor"], options, results)
    written = json.loads((tmp_path / "bench_gpu.json").read_text())["rows"]
    for row in ("bf16", "fp8_tensor"):
        assert "Traceback" in written[row]["error"]
        assert "no mixture" in written[row]["error"]


def test_kinds_of_kernels_cover_a_measured_step():
    own, kinds = own_kernels(), {}
    assert own["_carry"] == "our ssd"
    kernels = json.loads(RESULTS.read_text())["rows"]["bf16"]["micro_batches"]["8"]["kernels_ms"]
    for kernel, ms in kernels.items():
        kind = kind_of(kernel, own)
        kinds[kind] = kinds.get(kind, 0.0) + ms
    assert kinds["matrix products"] > 900
    assert kinds["our ssd"] > 140
    assert kinds["attention"] > 60
    assert kinds.get("other", 0.0) < 0.01 * sum(kinds.values())


def test_transformer_has_as_many_parameters_as_the_hybrid():
    hybrid, transformer = short_1b(), transformer_of(short_1b())
    assert transformer.model.hybrid_override_pattern == 17 * "*-"
    assert num_parameters(transformer.model) == 1_052_841_984
    assert num_parameters(hybrid.model) == 1_050_624_256


def batch_of(rows: int, length: int, vocabulary: int) -> HostBatch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (rows, length + 1), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < 0.9
    boundaries = torch.tensor([[0, 9, 40, length + 1]]).expand(rows, -1).contiguous()
    targets = mask.sum(1).numpy()
    return HostBatch(tokens.int(), mask, boundaries, targets, targets, {})


def test_cut_batch_is_the_beginning_of_its_rows():
    whole = batch_of(2, 64, 100)
    part = cut(whole, 32)
    assert part.tokens.equal(whole.tokens[:, :33])
    assert part.num_targets == whole.loss_mask[:, :32].sum()
    ids = document_ids(part.boundaries, 32)
    assert ids.equal(document_ids(whole.boundaries, 64)[:, :32])
    assert cut(whole, 64) is whole


def test_nemotron_has_our_loss_and_gradients():
    run = tiny_1b()
    small = {"vocab_size": 97, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 16}
    run = replace(run, model=replace(run.model, **small))
    device = torch.device("cpu")
    ours, theirs = drawn_model(run, device), Nemotron(run, device)
    batch = batch_of(2, 48, 97)
    tokens, targets = batch.tokens[:, :-1].long(), batch.tokens[:, 1:].long()
    losses = [model.loss(tokens, targets, batch.loss_mask) for model in (ours, theirs)]
    assert torch.allclose(losses[0].nats, losses[1].nats, rtol=1e-5)
    assert losses[0].targets == losses[1].targets
    for loss in losses:
        loss.total.backward()
    found = dict(theirs.model.named_parameters())
    for name, wanted in ours.named_parameters():
        gradient = found[name.replace("backbone.", "model.", 1)].grad
        assert (gradient - wanted.grad).norm() <= 1e-4 * wanted.grad.norm(), name


def test_kernel_errors_have_a_bound_for_every_kernel():
    assert ALLOWED.keys() == CASES.keys()
    errors = {"a": {"y": 0.1, "x": 0.2}, "b": {"y": 0.05, "x": 0.1, "w": 0.4}}
    assert worst(errors) == {"forward": 0.1, "gradients": 0.4}


def test_error_no_larger_than_that_of_rounding_is_allowed():
    rounding = {"y": 0.0022, "x": 0.0017}
    allowed = Allowed(0.002, 0.002)
    assert too_large(allowed, {"y": 0.00221, "x": 0.0019}, rounding) == []
    assert too_large(allowed, {"y": 0.0024, "x": 0.0021}, rounding) == ["y", "x"]
    assert too_large(allowed, {"y": float("nan"), "x": 0.001}, rounding) == ["y"]
