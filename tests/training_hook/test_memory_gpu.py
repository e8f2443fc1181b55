from dataclasses import replace

import pytest
import torch

from flows.runs.hybrid_150m import run as hybrid_150m
from pipelines.progress import say
from tests.training_hook.small_corpus import make_corpus, tiny_run
from training_hook.loop import build_model
from training_hook.memory import GIB, count_memory, free_memory
from training_hook.optimizer import adamw
from training_hook.pretrain import pretrain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # the compiler's advice to use TF32, and its own use of what PyTorch deprecates
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]


def test_run_that_cannot_fit_leaves_no_folder(tmp_path):
    device = torch.device("cuda")
    corpus = make_corpus(tmp_path)
    assert free_memory(device) <= torch.cuda.get_device_properties(device).total_memory
    wide = replace(tiny_run().model, hidden_size=98_304, intermediate_size=393_216)
    run = tiny_run(model=wide)
    with pytest.raises(ValueError, match="before any activation"):
        pretrain(run, corpus / "mixture", tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()
    before = free_memory(device)
    block = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    assert before - free_memory(device) == pytest.approx(1 << 30, rel=0.1)
    del block
    assert free_memory(device) == pytest.approx(before, rel=0.01)


def test_run_whose_memory_runs_out_says_what_to_change(tmp_path):
    corpus = make_corpus(tmp_path)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-5)  # a megabyte
    try:
        with pytest.raises(torch.OutOfMemoryError, match="smaller micro_batch_size than 2"):
            pretrain(tiny_run(), corpus / "mixture", tmp_path / "run", device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_estimate_of_a_compiled_step_is_below_its_peak():
    """A model of 150 M on this GPU: what is certain is less than the peak, the estimate near it."""
    run = hybrid_150m()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = build_model(run)
    model.reset_parameters(torch.Generator().manual_seed(0))
    model.to("cuda")
    adamw(model, run.betas, run.epsilon, run.weight_decay)
    if run.backend != "eager":
        model.compile_layers(run.backend)
    shape = (run.micro_batch_size, run.sequence_length)
    tokens = torch.zeros(shape, dtype=torch.long, device="cuda")
    with model.held_weights():
        for _ in range(2):
            model.loss(tokens, tokens).total.backward()
    peak = torch.cuda.max_memory_allocated() - before
    memory = count_memory(run)
    say(
        f"certain {memory.certain / GIB:.2f}, estimate {memory.estimate / GIB:.2f} GiB, "
        f"measured {peak / GIB:.2f} GiB"
    )
    assert memory.certain < peak
    assert memory.estimate == pytest.approx(peak, rel=0.25)
