import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from mixtures.holdout import held_out
from training_hook.evaluation.answers import problem_items
from training_hook.evaluation.exact_match import Item, encode_items, score_items
from training_hook.evaluation.lm_eval_adapter import CheckpointLM, main, run_lm_eval
from training_hook.evaluation.lm_eval_files import write_lm_eval_files
from training_hook.evaluation.tasks import Settings, evaluate_tasks
from training_hook.evaluation.trained import Trained, load_trained
from training_hook.export import export
from training_hook.generate import generate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what `datasets` makes of our files out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def trained(work: Path) -> Trained:
    return load_trained(work / "training", work / "tokenizer", "cpu")


@pytest.fixture(scope="module")
def peer(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> HFLM:
    """lm_eval's own class over the exported folder."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    model = trained.model
    export(model, model.config, trained.vocabulary, folder, [[11, 12]], probe_tokens=2)
    return HFLM(
        pretrained=str(folder),
        dtype="float32",
        device="cpu",
        batch_size=2,
        prefix_token_id=trained.vocabulary.eos_id,
        max_length=trained.sequence_length,
    )


@pytest.fixture(scope="module")
def texts(work: Path, trained: Trained) -> list[str]:
    documents = list(held_out(work / "mixture", 20_000))
    return [trained.vocabulary.decode(document.tokens[:-1]) for document in documents]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, pair, number) for number, pair in enumerate(arguments)]


def test_likelihoods_are_those_of_lm_evals_own_class(trained, peer, texts):
    pairs = [(text[: 40 * n], text[40 * n : 40 * n + 30]) for n, text in enumerate(texts[:8])]
    pairs += [(texts[8][:2_000], texts[8][2_000:2_050])]  # the context is cut to what fits
    pairs += [(texts[9][:60] + "  ", "word"), ("", texts[10][:80])]
    ours = CheckpointLM(trained, 700).loglikelihood(requests("loglikelihood", pairs))
    theirs = peer.loglikelihood(requests("loglikelihood", pairs))
    assert [score for score, _ in ours] == pytest.approx([s for s, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_rolling_likelihoods_are_those_of_lm_evals_own_class(trained, peer, texts):
    whole = [(text[:length],) for text, length in zip(texts, (10, 400, 2_500, 1_300), strict=False)]
    ours = CheckpointLM(trained).loglikelihood_rolling(requests("loglikelihood_rolling", whole))
    theirs = peer.loglikelihood_rolling(requests("loglikelihood_rolling", whole))
    assert ours == pytest.approx(theirs, abs=1e-3, rel=1e-5)


def test_generated_texts_are_those_of_lm_evals_own_class(trained, peer, texts):
    wanted = [
        (texts[0][:50], {"until": ["\n"], "max_gen_toks": 12}),
        (texts[1][:300], {"until": [], "max_gen_toks": 12}),
        (texts[2][:30], {"until": "e", "max_gen_toks": 5}),
        (texts[3][:3_000], {"until": ["\n\n"], "max_gen_toks": 12}),
    ]
    ours = CheckpointLM(trained).generate_until(requests("generate_until", wanted))
    theirs = peer.generate_until(requests("generate_until", wanted))
    assert ours == theirs
    assert any(ours)


def test_what_the_model_cannot_do_is_refused(trained):
    model = CheckpointLM(trained)
    sampled = {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 0.7}
    with pytest.raises(ValueError, match="decodes greedily only"):
        model.generate_until(requests("generate_until", [("a", sampled)]))
    with pytest.raises(
        ValueError, match="wants 256 new tokens; the model was trained on sequences"
    ):
        model.generate_until(requests("generate_until", [("a", {"until": []})]))
    with pytest.raises(ValueError, match="a continuation has 0 tokens; wanted 1 to 256"):
        model.loglikelihood(requests("loglikelihood", [("a", "")]))


def test_lm_eval_finds_the_shares_that_we_find(trained, texts, tmp_path):
    """Half of the answers are what greedy decoding says, the others are not."""
    items = []
    for number, text in enumerate(texts[:24]):
        prompt = text[: 60 + 3 * number].rstrip()
        ids = trained.vocabulary.encode_batch([prompt])[0].tolist()
        (greedy,) = generate(trained.model, [ids], 3, [])
        answer = trained.vocabulary.decode(greedy) if number % 2 else " something else"
        again = trained.vocabulary.encode_batch([prompt + answer])[0].tolist()
        if again[: len(ids)] == ids:
            items.append(Item(str(number), prompt, answer, {"entries": number % 3}))
    encode_items(trained.vocabulary, items)
    names = write_lm_eval_files(tmp_path, "phonebook", items)
    ours = score_items(trained.model, trained.vocabulary, items)
    found = run_lm_eval(trained, ["gristmill_phonebook_*"], tmp_path)
    assert sorted(names) == [f"gristmill_phonebook_{n}" for n in range(3)]
    assert 0 < ours["right"] < ours["asked"]
    for group in ours["groups"]:
        name = f"gristmill_phonebook_{group['entries']}"
        assert found["results"][name]["acc,none"] == pytest.approx(group["accuracy"])
        assert found["n-samples"][name]["effective"] == group["asked"]


class Solver(LM):
    """Answers as the items say, every third one wrongly, and goes on talking."""

    def __init__(self, items: list[Item]) -> None:
        super().__init__()
        self.answers = {item.prompt: item.answer for item in items}

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        found = []
        for number, request in enumerate(requests):
            assert request.args[1]["until"] == ["\nQuestion:"]
            answer = self.answers[request.args[0]]
            said = f"{answer}1" if number % 3 == 0 else answer
            found.append(f" first 7.\nAnswer: 7 or so.\nAnswer: {said}")
        return found


def test_arithmetic_is_right_where_the_last_answer_is(tmp_path):
    items = problem_items(6)
    names = write_lm_eval_files(tmp_path, "arithmetic", items)
    assert names == ["gristmill_arithmetic_chain_sum", "gristmill_arithmetic_gcd"]
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(
        model=Solver(items), tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    for name in names:
        assert found["results"][name]["exact_match,answer"] == pytest.approx(4 / 6)


def test_the_commands_ask_the_same_items(work, tmp_path, capsys):
    folder, out = tmp_path / "items", tmp_path / "found.json"
    settings = Settings(str(work / "mixture"), lm_eval=str(folder))
    ours = evaluate_tasks(
        work / "training", work / "tokenizer", ["phonebook:4", "needle:128"], settings, "cpu"
    )["tasks"]
    arguments = [str(work / "training"), "--tokenizer", str(work / "tokenizer"), "--device", "cpu"]
    arguments += ["--include", str(folder), "--out", str(out)]
    assert main([*arguments, "--task", "gristmill_*"]) == 0
    found = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["step"] == 2
    wanted = {"gristmill_phonebook_4": ours["phonebook"]["groups"][0]}
    wanted |= {f"gristmill_needle_128_{g['depth']}": g for g in ours["needle"]["groups"]}
    assert found["results"].keys() == wanted.keys()
    for name, group in wanted.items():
        assert found["results"][name]["acc,none"] == group["accuracy"]
        assert found["n-samples"][name]["effective"] == group["asked"]
    assert main([*arguments, "--task", "gristmill_other"]) == 1
    assert "no task is called gristmill_other" in capsys.readouterr().err
