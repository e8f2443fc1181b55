import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.training_hook import test_pretrain as plain_tests
from tests.training_hook.test_pretrain import LENGTH, assert_same_run, tiny_run
from training_hook.checkpoint import checkpoints
from training_hook.linear import FP8Linear, Linear
from training_hook.loop import build_model
from training_hook.metrics import read_evaluations, read_metrics
from training_hook.pretrain import pretrain
from training_hook.run import PretrainRun

# the compiler's own use of what PyTorch deprecates
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)
corpus, one_thread = plain_tests.corpus, plain_tests.one_thread
RECIPES = ("fp8_tensor", "fp8_delayed", "fp8_block")
# every product has multiples of 128: a Mamba layer's in_proj 2 * 128 + 2 * 64 + 128
MODEL = replace(
    tiny_run().model,
    hybrid_override_pattern="-M*-",
    hidden_size=128,
    intermediate_size=128,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=64,
    mamba_num_heads=128,
    mamba_head_dim=1,
    ssm_state_size=64,
)


def fp8_run(recipe: str, **changes) -> PretrainRun:
    """12 steps of 8 x 48 tokens, the last 3 without FP8."""
    given = {
        "model": MODEL,
        "batch_size": 8,
        "micro_batch_size": 8,
        "total_tokens": 12 * 8 * LENGTH,
        "linear_recipe": recipe,
        "plain_first_layers": 1,
        "plain_last_layers": 1,
        "plain_step_share": 0.25,
        "checkpoint_interval": 4,
        "evaluation_interval": 12,
        "keep_last": 3,
        "peak_learning_rate": 3e-3,
    }
    return tiny_run(**{**given, **changes})


@pytest.fixture(scope="module", params=RECIPES)
def unbroken(request, corpus, tmp_path_factory):
    """A run in FP8 that nothing disturbed, and its folder."""
    run, out = fp8_run(request.param), tmp_path_factory.mktemp(request.param) / "run"
    assert pretrain(run, corpus / "mixture", out)["status"] == "finished"
    return run, out


@pytest.fixture(scope="module")
def without_fp8(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("without") / "run"
    assert pretrain(fp8_run("plain"), corpus / "mixture", out)["status"] == "finished"
    return out


def test_fp8_run_learns_as_one_without(unbroken, without_fp8):
    _, out = unbroken
    ours, theirs = (torch.tensor(read_metrics(o)["loss"].to_pylist()) for o in (out, without_fp8))
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).abs().max() < 0.02 * theirs[0]
    assert ours[-1] < ours[0] - 0.3
    ours, theirs = (read_evaluations(o)["bits_per_byte"].to_pylist() for o in (out, without_fp8))
    assert ours[0] == theirs[0]  # before the first step: scores never run in FP8
    assert ours[-1] == pytest.approx(theirs[-1], rel=0.02)


def test_fp8_checkpoint_is_that_of_a_run_without(unbroken, without_fp8):
    def tensors(out):
        last = max(checkpoints(out / "checkpoints").values())
        return {
            (file.relative_to(last).as_posix(), name): (tensor.shape, tensor.dtype)
            for file in last.rglob("*.safetensors")
            for name, tensor in load_file(file).items()
        }

    run, out = unbroken
    found = tensors(out)
    # delayed scaling's history is the only thing more, of the products in FP8
    histories = {key for key in found if key[0].startswith("amaxes/")}
    assert len(histories) == (6 if run.linear_recipe == "fp8_delayed" else 0)
    assert {key: found[key] for key in found.keys() - histories} == tensors(without_fp8)


@pytest.mark.parametrize("step", [4, 8])
def test_fp8_run_continued_equals_unbroken_bit_for_bit(unbroken, corpus, tmp_path, step):
    run, original = unbroken
    out = tmp_path / "run"
    shutil.copytree(original, out)
    for later, path in checkpoints(out / "checkpoints").items():
        if later > step:
            shutil.rmtree(path)
    (out / "manifest.json").unlink()
    assert pretrain(run, corpus / "mixture", out)["status"] == "finished"
    assert_same_run(out, original)


def test_fp8_run_compiled_equals_eager(unbroken, corpus, tmp_path):
    run, original = unbroken
    out = tmp_path / "run"
    pretrain(replace(run, backend="aot_eager"), corpus / "mixture", out)
    ours, theirs = (read_metrics(o)["loss"].to_pylist() for o in (out, original))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_fp8_run_ends_without_fp8(unbroken, corpus, tmp_path):
    run, original = unbroken
    out = tmp_path / "run"
    summary = pretrain(replace(run, plain_step_share=0.0), corpus / "mixture", out)
    ours, theirs = (read_metrics(o)["loss"].to_pylist() for o in (out, original))
    assert ours[:9] == theirs[:9]
    assert ours[9] != theirs[9]
    stored = json.loads((original / "manifest.json").read_text())["run"]
    assert stored["plain_step_share"] == 0.25
    assert summary["run"]["plain_step_share"] == 0.0


def test_run_steps_without_fp8_are_its_last():
    run = fp8_run("fp8_block")
    assert [run.is_plain(step) for step in (1, 9, 10, 12)] == [False, False, True, True]
    assert not replace(run, plain_step_share=0.0).is_plain(12)
    assert fp8_run("plain").is_plain(1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_build_model_keeps_the_ends_and_the_head_plain(recipe):
    model = build_model(fp8_run(recipe))
    found = [
        {module.recipe for module in layer.modules() if isinstance(module, FP8Linear)}
        for layer in model.layers
    ]
    assert found == [set(), {recipe}, {recipe}, set()]
    products = [m for layer in model.layers[1:3] for m in layer.modules() if isinstance(m, Linear)]
    assert len(products) == 6
    assert all(isinstance(product, FP8Linear) for product in products)
    assert type(model.lm_head) is Linear
    model.set_low_precision(False)
    assert not any(product.low_precision for product in products)
    assert not any(isinstance(m, FP8Linear) for m in build_model(fp8_run("plain")).modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"linear_recipe": "fp4"},
            "known recipes: plain, fp8_tensor, fp8_tensor_e4m3, fp8_delayed, fp8_block",
        ),
        ({"plain_first_layers": -1}, "plain_first_layers is -1; wanted 0 or more"),
        ({"plain_step_share": 1.0}, "for 1, linear_recipe 'plain'"),
        ({"micro_batch_size": 4}, "is 192; fp8_block wants a multiple of 128"),
    ],
)
def test_run_with_fp8_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fp8_run("fp8_block", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plain_last_layers": 3}, "so none would run in it"),
        ({"model": replace(MODEL, mamba_num_heads=64)}, "in_features 64 and out_features 128"),
    ],
)
def test_build_model_with_fp8_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(fp8_run("fp8_block", **changes))
