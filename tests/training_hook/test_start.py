import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from flows.stages import export as export_stage
from mixtures.mixture import Mixture, Part, mix
from mixtures.token_dataset import tokenize
from mixtures.vocabulary import load_vocabulary
from mixtures.vocabulary_import import import_vocabulary
from tests.training_hook.small_corpus import LENGTH, make_corpus, tiny_run
from training_hook.checkpoint import checkpoints, load_weights, read_checkpoint
from training_hook.export import export
from training_hook.import_hf import import_hf
from training_hook.model import HybridModel
from training_hook.pretrain import pretrain
from training_hook.run import PretrainRun

EPSILON = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Mixtures, a run that was trained on one of them, and its export."""
    root = make_corpus(tmp_path_factory.mktemp("corpus"))
    pretrain(tiny_run().with_steps(6), root / "mixture", root / "base")
    export_stage(str(root / "base"), str(root / "vocabulary"), str(root / "hf"))
    return root


@pytest.fixture(scope="module")
def foreign(corpus, tmp_path_factory) -> Path:
    """The model of others: our weights, but nothing in the folder says whose they are."""
    folder = tmp_path_factory.mktemp("foreign") / "model"
    shutil.copytree(corpus / "hf", folder)
    (folder / "gristmill.json").unlink()
    (folder / "probe.json").unlink()
    return folder


def last(training: Path) -> Path:
    return max(checkpoints(training / "checkpoints").items())[1]


def still_run(**changes) -> PretrainRun:
    """One step that changes nothing."""
    return tiny_run(name="on", seed=9, peak_learning_rate=1e-30, **changes).with_steps(1)


@pytest.mark.parametrize("dtype", EPSILON)
def test_pretrain_from_an_export_scores_as_the_checkpoint(corpus, tmp_path, dtype):
    """Exactly from an FP32 folder; a BF16 folder has rounded each weight by up to 2^-8 of it."""
    run, weights = tiny_run(), load_weights(last(corpus / "base"))
    vocabulary = load_vocabulary(corpus / "vocabulary")
    export(weights, run.model, vocabulary, tmp_path / "hf", [], dtype=dtype, max_shard_bytes=40_000)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    out = tmp_path / "on"
    summary = pretrain(still_run(), corpus / "mixture", out, start=tmp_path / "hf")
    for name, tensor in load_weights(Path(summary["checkpoint"])).items():
        assert tensor.dtype == torch.float32
        assert bool(((tensor - weights[name]).abs() <= EPSILON[dtype] * weights[name].abs()).all())
    before = json.loads((corpus / "base" / "manifest.json").read_text())["bits_per_byte"]["after"]
    here = summary["bits_per_byte"]["before"]
    assert here == pytest.approx(before, rel=2e-3 if dtype == torch.bfloat16 else 1e-6)
    assert (here == before) == (dtype == torch.float32)
    moments = checkpoints(out / "checkpoints")[1] / "exp_avg_sq"
    with safe_open(next(moments.glob("*.safetensors")), framework="pt") as file:
        assert any(bool(file.get_tensor(name).any()) for name in file.keys())  # noqa: SIM118


def test_pretrain_from_a_checkpoint_or_its_folder_goes_on_with_its_weights(corpus, tmp_path):
    for number, start in enumerate((corpus / "base", last(corpus / "base"))):
        out = tmp_path / str(number)
        summary = pretrain(still_run(), corpus / "other-mixture", out, start=start)
        weights = load_weights(last(corpus / "base"))
        for name, tensor in load_weights(Path(summary["checkpoint"])).items():
            assert torch.equal(tensor, weights[name])
        assert summary["start"]["step"] == 6
        assert summary["start"]["run_fingerprint"] == tiny_run().with_steps(6).fingerprint()


def test_start_is_in_everything_that_the_run_leaves(corpus, tmp_path):
    out = tmp_path / "on"
    run = tiny_run(name="on", checkpoint_interval=1).with_steps(2)
    summary = pretrain(run, corpus / "other-mixture", out, start=corpus / "hf")
    start = summary["start"]
    assert start["origin"]["run"] == "tiny"
    assert start["origin"]["step"] == 6
    mixture = json.loads((corpus / "mixture" / "manifest.json").read_text())
    assert start["origin"]["mixture"] == mixture["fingerprint"]
    assert start["vocabulary"] == load_vocabulary(corpus / "vocabulary").fingerprint
    assert start["hugging_face"]["dtypes"] == ["F32"]
    assert json.loads((out / "run.json").read_text())["start"] == start
    for path in checkpoints(out / "checkpoints").values():
        assert read_checkpoint(path)["start"] == start
    (out / "manifest.json").unlink()
    shutil.rmtree(last(out))  # it goes on from step 1, and only with that start
    with pytest.raises(ValueError, match=r"was started from .*'origin'.* here it is fresh weights"):
        pretrain(run, corpus / "other-mixture", out)
    again = pretrain(run, corpus / "other-mixture", out, start=corpus / "hf")
    assert again["bits_per_byte"] == summary["bits_per_byte"]
    moved = tmp_path / "moved"
    shutil.copytree(corpus / "hf", moved)
    assert pretrain(run, corpus / "other-mixture", out, start=moved)["start"] == start


def test_tied_run_starts_from_its_export(corpus, tmp_path):
    """Export writes the table twice; what is read back is one."""
    model = replace(tiny_run().model, tie_word_embeddings=True)
    ours = HybridModel(model)
    ours.reset_parameters(torch.Generator().manual_seed(1))
    export(ours, model, load_vocabulary(corpus / "vocabulary"), tmp_path / "hf", [])
    summary = pretrain(
        still_run(model=model), corpus / "mixture", tmp_path / "on", start=tmp_path / "hf"
    )
    weights = load_weights(Path(summary["checkpoint"]))
    assert "lm_head.weight" not in weights
    assert torch.equal(weights["backbone.embeddings.weight"], ours.backbone.embeddings.weight)
    with pytest.raises(ValueError, match=r"ties head and embeddings .* has two tables"):
        pretrain(still_run(model=model), corpus / "mixture", tmp_path / "no", start=corpus / "hf")


def test_foreign_folder_starts_where_its_tokenizer_is_the_mixtures(corpus, foreign, tmp_path):
    with pytest.raises(ValueError, match=r"is not the vocabulary of .*tokenizer import"):
        pretrain(still_run(), corpus / "mixture", tmp_path / "no", start=foreign)
    vocabulary = corpus / "vocabulary"  # has the same tokenizer.json, which nobody can know
    pretrain(still_run(), corpus / "mixture", tmp_path / "named", vocabulary, start=foreign)
    other = tmp_path / "other"
    shutil.copytree(foreign, other)
    content = json.loads((other / "tokenizer.json").read_bytes())
    content["model"]["merges"] = content["model"]["merges"][::-1]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not the vocabulary of"):
        pretrain(still_run(), corpus / "mixture", tmp_path / "no", vocabulary, start=other)
    (other / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has neither gristmill\.json nor tokenizer\.json"):
        pretrain(still_run(), corpus / "mixture", tmp_path / "no", vocabulary, start=other)
    assert not (tmp_path / "no").exists()


def test_released_model_is_trained_on_with_its_own_tokenizer(corpus, foreign, tmp_path):
    """Import, tokenize, mix, pretrain --from: no --tokenizer needed, and export leads back."""
    import_vocabulary(foreign, tmp_path / "vocabulary")
    tokenize(corpus / "code", tmp_path / "vocabulary", tmp_path / "tokens")
    mixture = Mixture("more", (Part("code", 1.0),), LENGTH, holdout_share=0.2, max_documents=8)
    mix(mixture, {"code": tmp_path / "tokens"}, tmp_path / "mixture", seed=3)
    wide = HybridModel(replace(tiny_run().model, vocab_size=640))  # padded to a round size
    wide.reset_parameters(torch.Generator().manual_seed(1))
    export(wide, wide.config, None, tmp_path / "hf", [])
    shutil.copyfile(foreign / "tokenizer.json", tmp_path / "hf" / "tokenizer.json")
    run = tiny_run(name="on", model=wide.config).with_steps(3)
    summary = pretrain(run, tmp_path / "mixture", tmp_path / "on", start=tmp_path / "hf")
    assert summary["start"]["origin"] is None
    assert math.isfinite(summary["loss"])
    with pytest.raises(ValueError, match="is not the vocabulary of"):
        pretrain(run, corpus / "mixture", tmp_path / "no", start=tmp_path / "hf")
    export_stage(str(tmp_path / "on"), str(tmp_path / "vocabulary"), str(tmp_path / "back"))
    origin = json.loads((tmp_path / "back" / "gristmill.json").read_text())
    assert origin["vocabulary"] == load_vocabulary(tmp_path / "vocabulary").fingerprint
    assert origin["start"] == summary["start"]  # the way back to the released model
    read, _ = import_hf(tmp_path / "back")
    assert read == wide.config
    pretrain(
        replace(run, name="again"), tmp_path / "mixture", tmp_path / "more", start=tmp_path / "back"
    )


def test_imported_vocabulary_encodes_no_conversations(foreign, tmp_path, corpus):
    content = json.loads((foreign / "tokenizer.json").read_bytes())
    for token in content["added_tokens"]:
        token["content"] = token["content"].replace("SPECIAL_1", "OTHER_1")
    text = json.dumps(content).replace('"<SPECIAL_1', '"<OTHER_1')
    shutil.copytree(foreign, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(text)
    import_vocabulary(tmp_path / "model", tmp_path / "vocabulary")
    with pytest.raises(ValueError, match="has not the special tokens that conversations"):
        tokenize(corpus / "code", tmp_path / "vocabulary", tmp_path / "tokens", messages=True)


def cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 100)


def refused_folders(corpus: Path, folder: Path) -> list[tuple[Path, PretrainRun, str]]:
    run, weights = still_run(), load_weights(last(corpus / "base"))
    vocabulary = load_vocabulary(corpus / "vocabulary")
    export(weights, run.model, vocabulary, folder / "hf", [], max_shard_bytes=40_000)
    shards = sorted((folder / "hf").glob("*.safetensors"))
    for name in ("cut", "missing", "empty"):
        shutil.copytree(folder / "hf", folder / name)
    cut(folder / "cut" / shards[1].name)
    (folder / "missing" / shards[-1].name).unlink()
    (folder / "empty" / shards[0].name).write_bytes(b"")
    shutil.copytree(corpus / "base", folder / "cut-training")
    cut(next(last(folder / "cut-training").glob("model/*.safetensors")))
    other = replace(run, model=replace(run.model, hybrid_override_pattern="MM*-"))
    pattern = "hybrid_override_pattern: 'M-[*]-' there, 'MM[*]-' here"
    return [
        (folder / "hf", other, pattern),
        (corpus / "base", other, pattern),
        (folder / "cut", run, rf"{shards[1].name} .*cut off or no safetensors file"),
        (folder / "empty", run, rf"{shards[0].name} \(0 bytes\) is cut off"),
        (folder / "missing", run, rf"lacks 1 of the {len(shards)} files .*{shards[-1].name}"),
        (folder / "cut-training", run, "its manifest says .* bytes; remove"),
        (folder, run, "holds nothing to start from"),
        (corpus / "mixture", run, "is no checkpoint: its manifest is of something else, with "),
    ]


def test_start_that_does_not_fit_is_refused_before_anything_is_built(corpus, tmp_path, monkeypatch):
    def build(*_):
        raise AssertionError("it was built before it was checked")

    monkeypatch.setattr("training_hook.loop.build_model", build)
    for start, run, message in refused_folders(corpus, tmp_path):
        with pytest.raises(ValueError, match=message):
            pretrain(run, corpus / "mixture", tmp_path / "out", start=start)
        assert not (tmp_path / "out").exists()


def test_cut_off_checkpoint_is_refused_before_anything_is_built(corpus, tmp_path, monkeypatch):
    shutil.copytree(corpus / "base", tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    cut(next(last(tmp_path / "run").glob("exp_avg/*.safetensors")))
    monkeypatch.setattr("training_hook.loop.build_model", lambda run: pytest.fail("it was built"))
    with pytest.raises(ValueError, match=r"exp_avg/.* to go on from an earlier checkpoint"):
        pretrain(tiny_run().with_steps(6), corpus / "mixture", tmp_path / "run")


def test_export_with_another_vocabulary_is_refused(corpus, foreign, tmp_path):
    import_vocabulary(foreign, tmp_path / "vocabulary")
    with pytest.raises(ValueError, match="Give the folder of the vocabulary that its mixture"):
        export_stage(str(corpus / "base"), str(tmp_path / "vocabulary"), str(tmp_path / "hf"))


def test_pretrain_from_on_the_command_line_needs_no_tokenizer_library(corpus, tmp_path):
    (tmp_path / "my_runs.py").write_text(
        "import sys\n"
        "sys.modules['tokenizers'] = sys.modules['sentencepiece'] = None\n"
        "from training_hook.config import HybridConfig\n"
        "from training_hook.run import PretrainRun\n"
        f"def run():\n    return {still_run()!r}\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{tmp_path}"}

    def run(**paths) -> subprocess.CompletedProcess:
        options = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        return subprocess.run(
            [sys.executable, "-m", "training_hook.pretrain", "my_runs:run", "--json", *options],
            capture_output=True,
            text=True,
            env=environment,
        )

    places = {"mixture": corpus / "mixture", "out": tmp_path / "run"}
    done = run(**places, **{"from": corpus / "hf", "device": "cpu"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["start"]["origin"]["step"] == 6
    failed = run(**places | {"out": tmp_path / "no"}, **{"from": tmp_path})
    assert failed.returncode == 1
    assert "pretrain: failed: on: " in failed.stderr
    assert "holds nothing to start from" in failed.stderr
