import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from mixtures.mixture import Mixture, Part, mix
from mixtures.stream import Stream
from mixtures.token_dataset import tokenize
from mixtures.vocabulary import load_vocabulary
from mixtures.vocabulary_training import train_vocabulary
from pipelines.load import load
from tests.training_hook.small_corpus import MODEL, VOCABULARY, write_dataset
from training_hook.batches import document_ids, host_batch
from training_hook.checkpoint import checkpoints, load_weights, read_checkpoint
from training_hook.export import export
from training_hook.metrics import read_evaluations, read_metrics
from training_hook.model import HybridModel
from training_hook.pretrain import pretrain
from training_hook.run import PretrainRun
from training_hook.schedule import WarmupStableDecay
from training_hook.sft import main, sft
from training_hook.sft_run import SftRun

LENGTH = 128
SIZES = {"sequence_length": LENGTH, "batch_size": 4, "micro_batch_size": 2, "precision": "float32"}


def base_run(**changes) -> PretrainRun:
    given = {"total_tokens": 8 * 4 * LENGTH, "peak_learning_rate": 1e-2, "evaluation_tokens": 1_500}
    return PretrainRun(**{"name": "base", "model": MODEL, **SIZES, **given, **changes})


def chat_run(**changes) -> SftRun:
    given = {
        "total_tokens": 30 * 4 * LENGTH,
        "peak_learning_rate": 1e-2,
        "checkpoint_interval": 10,
        "evaluation_interval": 15,
        "evaluation_tokens": 1_500,
    }
    return SftRun(**{"name": "chat", "model": MODEL, **SIZES, **given, **changes})


def sums(count: int) -> list[list[dict[str, str | None]]]:
    """Additions, every other with a trace, some with two turns."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        messages: list[dict[str, str | None]] = []
        for _ in range(1 + (number % 5 == 0)):
            a, b = rng.randrange(10), rng.randrange(10)
            trace = f"{a} and {b}" if number % 2 else None
            answer = {"role": "assistant", "content": str(a + b), "reasoning_content": trace}
            messages += [{"role": "user", "content": f"{a} + {b} = ?"}, answer]
        rows.append(messages)
    return rows


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that the tests start
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A vocabulary, mixtures of text and of conversations, and a pretrained checkpoint."""
    root = tmp_path_factory.mktemp("corpus")
    rng = random.Random(1)
    words = ["the", "sum", "of", "a", "number", "and", "another", "is", "what", "you", "get"]
    texts = [" ".join(rng.choices(words, k=60)) + f" {n + 12345}" for n in range(300)]
    source = "".join(p.read_text("utf-8") for p in sorted(Path(json.__file__).parent.glob("*.py")))
    texts += [source[i : i + 400] for i in range(0, len(source), 400)]
    text = write_dataset(root / "text", "text", {"text": pa.array(texts)})
    strings = [(name, pa.string()) for name in ("role", "content", "reasoning_content")]
    column = pa.array(sums(400), pa.list_(pa.struct(strings)))
    chat = write_dataset(root / "chat", "chat", {"messages": column})
    train_vocabulary([text], root / "vocabulary", size=VOCABULARY, sample_bytes=200_000)
    tokenize(text, root / "vocabulary", root / "text-tokens")
    tokenize(chat, root / "vocabulary", root / "chat-tokens", messages=True)
    folders = {name: root / f"{name}-tokens" for name in ("text", "chat")}
    for name, parts in {"text": ("text",), "chat": ("chat",), "both": ("chat", "text")}.items():
        chosen = tuple(Part(part, 1.0, max_repetition=20.0) for part in parts)
        mixture = Mixture(name, chosen, LENGTH, holdout_share=0.2, max_documents=8)
        mix(mixture, {part: folders[part] for part in parts}, root / f"{name}-mixture", seed=3)
    pretrain(base_run(), root / "text-mixture", root / "base")
    return root


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> Path:
    """The output of a fine-tuning that nothing disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    summary = sft(chat_run(), corpus / "chat-mixture", corpus / "base", out)
    assert summary["status"] == "finished"
    return out


def assert_same_run(out: Path, other: Path) -> None:
    """Asserts that two runs agree bit for bit in everything but their clocks."""
    ours, theirs = (
        read_metrics(o).drop_columns(["seconds", "tokens_per_second"]) for o in (out, other)
    )
    assert ours.equals(theirs)
    assert read_evaluations(out).equals(read_evaluations(other))
    last, other_last = (max(checkpoints(o / "checkpoints").values()) for o in (out, other))
    for file in last.rglob("*.safetensors"):
        there = load_file(other_last / file.relative_to(last))
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, there[name]), (file, name)


def test_sft_learns_what_the_assistant_writes(corpus, unbroken):
    summary = json.loads((unbroken / "manifest.json").read_text())
    assert summary["step"] == summary["total_steps"] == 30
    before, after = summary["held_out_loss"]["before"], summary["held_out_loss"]["after"]
    assert before.keys() == after.keys() == {"chat", "total"}
    assert after["chat"] < 0.6 * before["chat"]
    steps = read_metrics(unbroken)
    assert np.mean(steps["loss"][-5:]) < 0.6 * steps["loss"][0].as_py()
    # the loss is the mean over assistants' tokens: far fewer than there are places
    assert max(steps["target_tokens"].to_pylist()) < 0.6 * 4 * LENGTH
    rates = steps["learning_rate"].to_pylist()
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-2 / 15)
    base = max(checkpoints(corpus / "base" / "checkpoints").values())
    assert summary["start"]["step"] == 8
    assert summary["start"]["run_fingerprint"] == base_run().fingerprint()
    assert json.loads((unbroken / "run.json").read_text())["start"] == summary["start"]
    last = max(checkpoints(unbroken / "checkpoints").values())
    assert read_checkpoint(last)["start"] == summary["start"]
    assert load_weights(base).keys() == load_weights(last).keys()


def test_sft_begins_with_the_weights_of_its_start(corpus, tmp_path):
    """A step without learning leaves them, whatever the seed, and scores them on conversations."""
    run = chat_run(seed=7, peak_learning_rate=1e-30).with_steps(1)
    summary = sft(run, corpus / "chat-mixture", corpus / "base", tmp_path / "run")
    base = load_weights(max(checkpoints(corpus / "base" / "checkpoints").values()))
    for name, tensor in load_weights(Path(summary["checkpoint"])).items():
        assert torch.equal(tensor, base[name])
    moments = load_file(
        Path(summary["checkpoint"]) / "exp_avg" / "model-00001-of-00001.safetensors"
    )
    assert any(bool(tensor.any()) for tensor in moments.values())


def test_sft_of_sft_goes_on_from_its_weights(corpus, unbroken, tmp_path):
    first = max(checkpoints(unbroken / "checkpoints").values())
    run = chat_run(name="again").with_steps(2)
    summary = sft(run, corpus / "both-mixture", first, tmp_path / "run")
    assert summary["start"]["run"] == "chat"
    assert summary["held_out_loss"]["before"].keys() == {"chat", "text", "total"}
    alone = json.loads((unbroken / "manifest.json").read_text())["held_out_loss"]["after"]
    assert summary["held_out_loss"]["before"]["chat"] == pytest.approx(alone["chat"], rel=1e-5)


def test_sft_of_an_export_begins_as_that_of_its_checkpoint(corpus, unbroken, tmp_path):
    base = max(checkpoints(corpus / "base" / "checkpoints").values())
    vocabulary = load_vocabulary(corpus / "vocabulary")
    export(load_weights(base), MODEL, vocabulary, tmp_path / "hf", [])
    run = chat_run().with_steps(1)
    summary = sft(run, corpus / "chat-mixture", tmp_path / "hf", tmp_path / "run")
    alone = json.loads((unbroken / "manifest.json").read_text())
    assert summary["held_out_loss"]["before"] == alone["held_out_loss"]["before"]
    assert summary["start"]["origin"] == {"vocabulary": vocabulary.fingerprint}


RUN = """
from pathlib import Path
import torch
from training_hook.sft import sft
torch.set_num_threads(1)
sft(run, Path(mixture), Path(start), Path(out))
"""


@pytest.mark.slow
def test_sft_killed_again_and_again_gives_the_unbroken_losses(corpus, unbroken, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_hook.sft"])
    out = tmp_path / "run"
    places = {"mixture": corpus / "chat-mixture", "start": corpus / "base", "out": out}
    settings = {"run": chat_run(), **{name: str(path) for name, path in places.items()}}
    rng = random.Random(0)
    for reached in (0, 10, 20):
        worker = context.Process(target=exec, args=(RUN, dict(settings)))
        worker.start()
        while max(checkpoints(out / "checkpoints"), default=0) < reached:
            assert worker.is_alive() or max(checkpoints(out / "checkpoints")) >= reached
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2) if reached else 1.0)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    summary = sft(chat_run(), places["mixture"], places["start"], out)
    assert summary["status"] == "finished"
    assert_same_run(out, unbroken)


def test_sft_from_its_middle_checkpoint_makes_the_later_steps_again(corpus, unbroken, tmp_path):
    out = tmp_path / "run"
    run = chat_run(keep_last=5)  # no loss depends on it
    sft(run, corpus / "chat-mixture", corpus / "base", out)
    for step in (20, 30):
        (out / "checkpoints" / f"step-{step:08d}" / "manifest.json").unlink()
    (out / "manifest.json").unlink()
    sft(chat_run(), corpus / "chat-mixture", corpus / "base", out)
    assert_same_run(out, unbroken)


def test_sft_gives_no_gradient_to_what_is_not_the_assistants(corpus):
    """Another target where a user wrote changes neither loss nor gradient; an assistant's does."""
    stream = next(Stream(corpus / "chat-mixture", 4))
    batch = host_batch(stream, {}, pin=False)
    ids = document_ids(batch.boundaries, LENGTH)
    tokens, mask = batch.tokens.long(), batch.loss_mask
    assert mask is not None
    targets = tokens[:, 1:].contiguous()

    def step(targets):
        model = HybridModel(MODEL)
        model.reset_parameters(torch.Generator().manual_seed(0))
        nats, count, _ = model.loss(tokens[:, :-1].contiguous(), targets, mask, ids)
        nats.backward()
        return nats.item(), count.item(), [p.grad for p in model.parameters()]

    loss, count, gradients = step(targets)
    other = torch.where(mask, targets, (targets + 17) % VOCABULARY)
    other_loss, other_count, other_gradients = step(other)
    assert (loss, count) == (other_loss, other_count) == (loss, batch.num_targets)
    assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))
    row, place = (int(index[0]) for index in torch.nonzero(mask, as_tuple=True))
    other = targets.clone()
    other[row, place] = (targets[row, place] + 17) % VOCABULARY
    assert step(other)[0] != loss


def test_sft_conversations_of_a_pack_do_not_see_each_other(corpus):
    stream = Stream(corpus / "chat-mixture", 1)
    model = HybridModel(MODEL)
    model.reset_parameters(torch.Generator().manual_seed(0))
    batch = next(b for b in stream if (b.boundaries[0] <= LENGTH).sum() >= 2)
    first, second = batch.boundaries[0, :2].tolist()
    ids = document_ids(torch.from_numpy(batch.boundaries.astype(np.int64)), LENGTH)
    tokens = torch.from_numpy(batch.tokens.astype(np.int64))
    changed = tokens.clone()
    changed[0, first:second] = 5
    with torch.no_grad():
        here, there = (model(t[:, :-1], ids)[0, second:] for t in (tokens, changed))
        one_document = [model(t[:, :-1])[0, second:] for t in (tokens, changed)]
    torch.testing.assert_close(here, there, rtol=0, atol=1e-6)
    assert (one_document[0] - one_document[1]).abs().max() > 1e-3


def test_sft_refuses_what_does_not_fit(corpus, unbroken, tmp_path):
    chat, base, out = corpus / "chat-mixture", corpus / "base", tmp_path / "run"
    with pytest.raises(ValueError, match="holds conversations, so every token"):
        sft(chat_run(), corpus / "text-mixture", base, out)
    with pytest.raises(ValueError, match="base is a PretrainRun; wanted an SftRun"):
        sft(base_run(), chat, base, out)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="chat is an SftRun, which trains on conversations"):
        pretrain(chat_run(), chat, out)
    wider = chat_run(model=replace(MODEL, hidden_size=48, num_key_value_heads=2))
    with pytest.raises(ValueError, match="hidden_size: 24 there, 48 here; num_key_value_heads: 1"):
        sft(wider, chat, base, out)
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        sft(chat_run(), chat, tmp_path, out)
    assert not out.exists()
    with pytest.raises(ValueError, match=r"was started from .*'run': 'base'.* here it is"):
        sft(chat_run(), chat, unbroken, unbroken)
    with pytest.raises(ValueError, match=r"peak_learning_rate: 0\.01 there, 0\.02 here"):
        sft(chat_run(peak_learning_rate=2e-2), chat, base, unbroken)


def test_sft_refuses_a_mixture_of_another_vocabulary(corpus, tmp_path):
    other = tmp_path / "vocabulary"
    train_vocabulary([corpus / "text"], other, size=VOCABULARY, seed=1, sample_bytes=100_000)
    tokenize(corpus / "chat", other, tmp_path / "tokens", messages=True)
    mixture = Mixture("chat", (Part("chat", 1.0, 20.0),), LENGTH, max_documents=8)
    mix(mixture, {"chat": tmp_path / "tokens"}, tmp_path / "mixture", seed=3)
    with pytest.raises(ValueError, match="Tokenize and mix with the checkpoint's vocabulary"):
        sft(chat_run(), tmp_path / "mixture", corpus / "base", tmp_path / "run")


def test_export_of_a_chat_model_carries_the_template(corpus, unbroken, tmp_path):
    last = max(checkpoints(unbroken / "checkpoints").values())
    vocabulary = load_vocabulary(corpus / "vocabulary")
    export(load_weights(last), MODEL, vocabulary, tmp_path / "hf", [[11]], probe_tokens=2)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    question = [{"role": "user", "content": "2 + 2 = ?"}]
    texts = {
        thinking: loaded.apply_chat_template(
            question, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        for thinking in (True, False)
    }
    assert texts[True].endswith("<SPECIAL_11>Assistant\n<think>\n")
    assert texts[False].endswith("<SPECIAL_11>Assistant\n<think></think>")
    off = [{"role": "user", "content": "2 + 2 = ? /no_think"}]
    assert (
        loaded.apply_chat_template(off, tokenize=False, add_generation_prompt=True)
        == (texts[False])
    )
    ended = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert ended == [2, 12]


def test_sft_from_the_command_line(corpus, tmp_path):
    """In a process of its own, where it may import neither tokenizers nor sentencepiece."""
    (tmp_path / "my_runs.py").write_text(
        "import sys\n"
        "sys.modules['tokenizers'] = sys.modules['sentencepiece'] = None\n"
        "from training_hook.config import HybridConfig\n"
        "from training_hook.sft_run import SftRun\n"
        f"def run():\n    return {chat_run()!r}\n"
    )
    root = Path(__file__).parents[2]
    places = {"--mixture": "chat-mixture", "--from": "base"}
    command = [sys.executable, "-m", "training_hook.sft", "my_runs:run", "--json", "--steps", "2"]
    for option, name in places.items():
        command += [option, str(corpus / name)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run"), "--device", "cpu"],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{tmp_path}"},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["step"]) == ("finished", 2)
    assert summary["start"]["step"] == 8


def test_published_sft_run_loads_and_can_be_planned(capsys):
    run = load("flows.runs.sft_tiny:run", "run", SftRun)
    assert isinstance(run, SftRun)
    assert run.model == load("flows.runs.hybrid_tiny:run", "run", PretrainRun).model
    assert main(["flows.runs.sft_tiny:run", "--dry-run", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == run.total_steps
    with pytest.raises(SystemExit):
        main(["flows.runs.hybrid_tiny:run", "--dry-run"])
    assert "returns PretrainRun; wanted SftRun" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["flows.runs.sft_tiny:run"])
    assert "--mixture and --from and --out are needed" in capsys.readouterr().err


def test_cosine_decay_falls_from_peak_to_its_end():
    schedule = WarmupStableDecay(1.0, 100, 0.1, 0.9, "cosine", 0.2)
    rates = [schedule.learning_rate(step) for step in range(1, 101)]
    assert rates[9] == 1.0
    assert rates[54] == pytest.approx(0.6)
    assert rates[-1] == pytest.approx(0.2)
    assert all(np.diff(rates[9:]) < 0)
