import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, NemotronHForCausalLM

from mixtures.special_tokens import SpecialIds
from training_hook.config import HybridConfig
from training_hook.export import export
from training_hook.import_hf import import_hf
from training_hook.model import HybridModel, tensor_shapes

BASE = HybridConfig(
    hybrid_override_pattern="MM-*-M-",
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    mamba_num_heads=6,
    mamba_head_dim=4,
    n_groups=3,
    ssm_state_size=8,
    chunk_size=8,
)
CONFIGS = {
    "mixed": BASE,
    "one_group": dataclasses.replace(BASE, n_groups=1, hybrid_override_pattern="M-M*-MM-"),
    # as in Nano 2 9B: the width of Mamba is no multiple of the hidden size, head_dim neither
    "odd_widths": dataclasses.replace(
        BASE,
        hidden_size=28,
        mamba_num_heads=8,
        mamba_head_dim=10,
        n_groups=4,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=12,
        hybrid_override_pattern="M-MM-M*-",
    ),
    "attention_first": dataclasses.replace(BASE, hybrid_override_pattern="*-M*-"),
    "tied": dataclasses.replace(BASE, tie_word_embeddings=True),
}


class Recorder:
    fingerprint = "recorded"
    special_ids = SpecialIds()

    def write_hf(self, out: Path) -> None:
        (Path(out) / "tokenizer.json").write_text("{}")


def fresh(config: HybridConfig) -> HybridModel:
    """Fresh time steps (as small as 0.001), but layers that add as much as the embeddings."""
    model = HybridModel(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(8 if "embeddings" not in name else 20)
    return model


def tokens_of(length: int) -> Tensor:
    return torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(1))


def load_in_transformers(folder: Path) -> nn.Module:
    model, report = NemotronHForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_export_logits_equal_transformers_in_prefill_and_decode(name, tmp_path):
    ours = fresh(CONFIGS[name])
    export(ours, CONFIGS[name], None, tmp_path / "hf", [])
    theirs = load_in_transformers(tmp_path / "hf")
    tokens = tokens_of(29)
    wanted = ours(tokens)
    assert wanted.std() > 0.5
    torch.testing.assert_close(theirs(tokens).logits, wanted, rtol=0, atol=1e-4)

    output = theirs(tokens[:, :19], use_cache=True)
    logits = [output.logits]
    for t in range(19, 29):
        output = theirs(
            tokens[:, t : t + 1], past_key_values=output.past_key_values, use_cache=True
        )
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), wanted, rtol=0, atol=1e-4)


def test_export_auto_class_loads_without_remote_code(tmp_path):
    export(fresh(BASE), BASE, None, tmp_path / "hf", [])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=False)
    assert isinstance(model, NemotronHForCausalLM)
    assert model.config.hybrid_override_pattern == BASE.hybrid_override_pattern
    assert model.generation_config.eos_token_id == [2, 12]
    assert model.generation_config.bos_token_id == 1
    assert model.generation_config.pad_token_id == 0
    assert not any(path.suffix in (".py", ".bin", ".pt") for path in (tmp_path / "hf").iterdir())


def test_export_config_has_what_servers_need(tmp_path):
    export(fresh(BASE), BASE, None, tmp_path / "hf", [], dtype=torch.bfloat16)
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["model_type"] == "nemotron_h"
    assert written["architectures"] == ["NemotronHForCausalLM"]
    assert written["hybrid_override_pattern"] == "MM-*-M-"
    assert written["num_hidden_layers"] == 7
    assert written["time_step_min"] == 1e-12
    assert written["mamba_ssm_cache_dtype"] == "float32"
    assert written["torch_dtype"] == "bfloat16"
    assert not {"position_embedding_type", "rope_theta"} & written.keys()


def test_export_model_with_positions_is_refused(tmp_path):
    config = dataclasses.replace(BASE, position_embedding_type="rope")
    with pytest.raises(ValueError, match="position_embedding_type is 'rope'; a nemotron_h has"):
        export(fresh(config), config, None, tmp_path / "hf", [])
    assert not (tmp_path / "hf").exists()


def test_export_names_and_dtypes_in_a_bf16_folder(tmp_path):
    export(fresh(BASE), BASE, None, tmp_path / "hf", [], dtype=torch.bfloat16)
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        dtypes = {name: file.get_tensor(name).dtype for name in names}
        assert file.get_tensor("backbone.layers.0.mixer.conv1d.weight").shape == (72, 1, 4)
    assert names == tensor_shapes(BASE).keys()
    exact = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert exact == {
        f"backbone.layers.{i}.mixer.{name}" for i in (0, 1, 5) for name in ("A_log", "D", "dt_bias")
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_import_hf_returns_what_was_exported(name, tmp_path):
    config, ours = CONFIGS[name], fresh(CONFIGS[name])
    export(ours, config, None, tmp_path / "hf", [])
    read, tensors = import_hf(tmp_path / "hf")
    assert read == dataclasses.replace(config, tie_word_embeddings=False)
    again = HybridModel(read)
    again.load_state_dict(tensors)
    assert torch.equal(again(tokens_of(9)), ours(tokens_of(9)))


def test_import_hf_reads_what_transformers_saves_once_the_pattern_is_back(tmp_path):
    ours = fresh(BASE)
    export(ours, BASE, None, tmp_path / "hf", [])
    load_in_transformers(tmp_path / "hf").save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="no hybrid_override_pattern; transformers drops it"):
        import_hf(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    _, tensors = import_hf(tmp_path / "theirs")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in ours.state_dict().items())


def test_export_state_dict_without_tied_head_is_enough(tmp_path):
    config = CONFIGS["tied"]
    ours = fresh(config)
    export(dict(ours.named_parameters()), config, None, tmp_path / "hf", [])
    _, tensors = import_hf(tmp_path / "hf")
    assert torch.equal(tensors["lm_head.weight"], ours.backbone.embeddings.weight)


def test_export_large_model_is_spread_over_shards(tmp_path):
    ours = fresh(BASE)
    export(ours, BASE, None, tmp_path / "hf", [], max_shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in ours.state_dict().values())
    _, tensors = import_hf(tmp_path / "hf")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in ours.state_dict().items())
    with torch.no_grad():
        logits = load_in_transformers(tmp_path / "hf")(tokens_of(9)).logits
    torch.testing.assert_close(logits, ours(tokens_of(9)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_probe_equals_greedy_decoding_in_transformers(dtype, tmp_path):
    prompts = [[1, 5, 9, 60, 3], [7]]
    export(fresh(BASE), BASE, None, tmp_path / "hf", prompts, probe_tokens=9, dtype=dtype)
    written = json.loads((tmp_path / "hf" / "probe.json").read_text())
    theirs = load_in_transformers(tmp_path / "hf")
    assert [probe["prompt_ids"] for probe in written["probes"]] == prompts
    for probe in written["probes"]:
        prompt = torch.tensor([probe["prompt_ids"]])
        output = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=9,
            eos_token_id=-1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert output.sequences[0, prompt.shape[1] :].tolist() == probe["greedy_ids"]
        best = torch.cat(output.logits).log_softmax(-1).topk(2).values
        close = {"rtol": 0, "atol": 1e-4}
        torch.testing.assert_close(torch.tensor(probe["log_probabilities"]), best[:, 0], **close)
        margins = best[:, 0] - best[:, 1]
        torch.testing.assert_close(torch.tensor(probe["margins"]), margins, **close)


def test_export_writes_tokenizer_files_and_replaces_an_older_export(tmp_path):
    out = tmp_path / "hf"
    export(fresh(BASE), BASE, None, out, [])
    assert not (out / "tokenizer.json").exists()
    export(fresh(BASE), BASE, Recorder(), out, [])
    assert (out / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_export_failing_vocabulary_leaves_the_older_export(tmp_path):
    class Broken(Recorder):
        def write_hf(self, out: Path) -> None:
            raise OSError("disk full")

    out = tmp_path / "hf"
    export(fresh(BASE), BASE, Recorder(), out, [])
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match="disk full"):
        export(HybridModel(BASE), BASE, Broken(), out, [])
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_export_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else; choose another folder"):
        export(fresh(BASE), BASE, None, tmp_path, [])
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("prompt", [[], [97], [-1]])
def test_export_wrong_probe_prompt_is_refused(prompt, tmp_path):
    with pytest.raises(ValueError, match="wanted one or more ids below vocab_size 97"):
        export(fresh(BASE), BASE, None, tmp_path / "hf", [prompt])
    assert not (tmp_path / "hf").exists()


def test_export_tensors_of_another_model_are_refused(tmp_path):
    tensors = fresh(BASE).state_dict()
    del tensors["backbone.norm_f.weight"]
    with pytest.raises(ValueError, match=r"1 tensors are missing .first: ..backbone\.norm_f"):
        export(tensors, BASE, None, tmp_path / "hf", [])
    wider = dataclasses.replace(BASE, intermediate_size=56)
    with pytest.raises(ValueError, match=r"up_proj.weight has shape \(48, 32\)"):
        export(fresh(BASE), wider, None, tmp_path / "hf", [])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "llama", "has model_type 'llama'; this model has 'nemotron_h'"),
        ("mlp_bias", True, "has mlp_bias True"),
        ("mlp_hidden_act", "silu", "has mlp_hidden_act 'silu'"),
        ("hybrid_override_pattern", "ME-*-M-", "'E' at layer 1"),
        ("hidden_size", None, "hidden_size is None"),
    ],
)
def test_import_hf_other_architecture_is_refused(key, value, message, tmp_path):
    export(fresh(BASE), BASE, None, tmp_path / "hf", [])
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=message):
        import_hf(tmp_path / "hf")


def test_import_hf_never_reads_pickles(tmp_path):
    export(fresh(BASE), BASE, None, tmp_path / "hf", [])
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights are not read"):
        import_hf(tmp_path / "hf")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        import_hf(tmp_path)
