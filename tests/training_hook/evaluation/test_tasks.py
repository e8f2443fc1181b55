import json
import math
import shutil

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import application
from mixtures.holdout import held_out
from mixtures.mixture import Mixture, Part, mix
from mixtures.token_dataset import tokenize
from mixtures.vocabulary import load_vocabulary
from mixtures.vocabulary_training import train_vocabulary
from training_hook.checkpoint import last_checkpoint
from training_hook.evaluation.exact_match import encode_items
from training_hook.evaluation.groups import OTHERS, grouped
from training_hook.evaluation.phonebook import Phonebook, score_phonebook
from training_hook.evaluation.tasks import Settings, evaluate_tasks, main, parse_task
from training_hook.evaluation.trained import load_trained
from training_hook.metrics import read_evaluations


def test_tasks_are_read_with_their_sizes():
    assert parse_task("phonebook:8,16") == ("phonebook", (8, 16))
    assert parse_task("needle") == ("needle", ())
    for wrong in ("phone", "phonebook:", "phonebook:a", "arithmetic:4", "needle:1,"):
        with pytest.raises(ValueError, match="is unknown; tasks: phonebook, needle, arithmetic"):
            parse_task(wrong)


def test_phonebook_asks_the_lists_that_fit(work):
    trained = load_trained(work / "training", work / "tokenizer", "cpu")
    found = score_phonebook(trained.model, trained.vocabulary, 256, Phonebook(num_items=10))
    longest = {
        entries: max(
            len(item.tokens)
            for item in encode_items(trained.vocabulary, Phonebook(num_items=10).items(entries))
        )
        for entries in (4, 8, 16, 32)
    }
    fit = {entries: tokens for entries, tokens in longest.items() if tokens <= 257}
    assert 0 < len(fit) < 4
    assert {group["entries"]: group["tokens"] for group in found["groups"]} == fit
    assert found["asked"] == 10 * len(fit)


def test_lists_that_do_not_fit_are_refused(work):
    trained = load_trained(work / "training", work / "tokenizer", "cpu")
    with pytest.raises(ValueError, match="of 256; ask for shorter lists"):
        score_phonebook(trained.model, trained.vocabulary, 256, Phonebook((4, 64), 2))
    with pytest.raises(ValueError, match="no list of 4 entries fits into 40 tokens"):
        score_phonebook(trained.model, trained.vocabulary, 40, Phonebook(num_items=2))


def test_bits_per_byte_by_part_are_those_of_the_run(work):
    settings = Settings(mixture=str(work / "mixture"))
    found = evaluate_tasks(
        work / "training", work / "tokenizer", ["bits_per_byte"], settings, "cpu"
    )
    scored = {
        row["part"]: row["bits_per_byte"] for row in found["tasks"]["bits_per_byte"]["groups"]
    }
    table = read_evaluations(work / "training").to_pylist()
    wanted = {row["part"]: row["bits_per_byte"] for row in table if row["step"] == found["step"]}
    assert scored == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("by", "names"), [("domain", {"a.example", "b.example"}), ("language", {"en", "de", "(none)"})]
)
def test_bits_per_byte_by_a_column_add_up_to_those_by_part(work, by, names):
    datasets = str(work / "prose"), str(work / "code")
    by_part, by_column = (
        evaluate_tasks(work / "training", work / "tokenizer", ["bits_per_byte"], settings, "cpu")[
            "tasks"
        ]["bits_per_byte"]
        for settings in (
            Settings(mixture=str(work / "mixture")),
            Settings(mixture=str(work / "mixture"), by=by, datasets=datasets),
        )
    )
    assert {row["part"] for row in by_column["groups"]} == names
    for key in ("documents", "tokens", "bytes", "bits_per_byte"):
        assert by_column["total"][key] == pytest.approx(by_part["total"][key], rel=1e-5)
    total = math.fsum(row["nats"] for row in by_column["groups"])
    assert total == pytest.approx(by_column["total"]["nats"])


def test_documents_are_grouped_by_what_their_row_says(work):
    documents = list(held_out(work / "mixture", 10**6))
    rows = {}
    for name in ("prose", "code"):
        for row in pq.read_table(work / name / "data" / "00000.parquet").to_pylist():
            rows[row["id"]] = row
    found = grouped(documents, [work / "prose", work / "code"], "url", max_groups=3)
    sizes = sorted({d.size_bytes for d in documents}, reverse=True)
    for document, group in zip(documents, found, strict=True):
        assert group.tokens is document.tokens
        if document.size_bytes != sizes[2]:  # as long as others, perhaps
            large = document.size_bytes > sizes[2]
            assert group.part == (rows[document.document_id]["url"] if large else OTHERS)
    assert len({group.part for group in found}) == 4


def test_documents_of_other_datasets_and_absent_columns_are_refused(work):
    documents = list(held_out(work / "mixture", 10**6))
    with pytest.raises(ValueError, match="Give the datasets of all parts"):
        grouped(documents, [work / "code"], "language")
    with pytest.raises(ValueError, match="has no column 'kind'; it has: id, text, url, language"):
        grouped(documents, [work / "code"], "kind")


def test_the_command_writes_all_tasks_to_one_file(work, tmp_path, capsys):
    arguments = [str(work / "training"), "--tokenizer", str(work / "tokenizer"), "--device", "cpu"]
    arguments += ["--task", "phonebook:4", "--task", "needle:128", "--task", "bits_per_byte"]
    arguments += ["--mixture", str(work / "mixture"), "--out", str(tmp_path / "found.json")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert (found["step"], found["sequence_length"]) == (2, 256)
    assert set(found["tasks"]) == {"phonebook", "needle", "bits_per_byte"}
    assert main(arguments) == 0
    shown = capsys.readouterr().err
    assert "phonebook  entries 4: " in shown
    assert "needle  length 128, depth 50: " in shown


def test_arithmetic_is_asked_as_plain_text(work):
    settings = Settings(problems=3)
    found = evaluate_tasks(work / "training", work / "tokenizer", ["arithmetic"], settings, "cpu")
    result = found["tasks"]["arithmetic"]
    assert not result["chat"]
    assert result["asked"] == sum(family["asked"] for family in result["families"].values()) == 6


def test_what_does_not_fit_the_model_is_refused(work, tmp_path, capsys):
    training, tokenizer = work / "training", work / "tokenizer"
    with pytest.raises(ValueError, match="needle: takes held-out documents; give the mixture"):
        evaluate_tasks(training, tokenizer, ["needle"], Settings())
    with pytest.raises(ValueError, match="a column and the datasets that have it are given togeth"):
        evaluate_tasks(training, tokenizer, ["bits_per_byte"], Settings("mixture", by="url"))
    with pytest.raises(ValueError, match="holds no finished checkpoint"):
        evaluate_tasks(tmp_path, tokenizer, ["phonebook"], Settings())
    other = tmp_path / "tokenizer"
    train_vocabulary([work / "code"], other, size=600, sample_bytes=50_000)
    with pytest.raises(ValueError, match=r"is not the vocabulary of .*step-00000002: its fingerp"):
        evaluate_tasks(training, other, ["phonebook"], Settings())
    assert main([str(training), "--tokenizer", str(tokenizer), "--task", "phonebook:64"]) == 1
    assert "ask for shorter lists" in capsys.readouterr().err


def test_a_mixture_of_another_vocabulary_is_refused_and_another_one_is_said(work, tmp_path, capsys):
    other = Mixture("other", (Part("code", 1.0, 100.0),), 256, num_samples=2, holdout_share=0.3)
    mix(other, {"code": work / "code-tokens"}, tmp_path / "mixture", 0)
    settings = Settings(mixture=str(tmp_path / "mixture"))
    found = evaluate_tasks(
        work / "training", work / "tokenizer", ["bits_per_byte"], settings, "cpu"
    )
    assert found["tasks"]["bits_per_byte"]["total"]["bytes"] > 0
    assert "was trained on another mixture than" in capsys.readouterr().err
    train_vocabulary([work / "code"], tmp_path / "tokenizer", size=600, sample_bytes=50_000)
    tokenize(work / "code", tmp_path / "tokenizer", tmp_path / "tokens")
    mix(other, {"code": tmp_path / "tokens"}, tmp_path / "mixture-600", 0)
    settings = Settings(mixture=str(tmp_path / "mixture-600"))
    with pytest.raises(ValueError, match="is of the vocabulary"):
        evaluate_tasks(work / "training", work / "tokenizer", ["bits_per_byte"], settings, "cpu")


def test_a_checkpoint_alone_is_evaluated_too(work, tmp_path):
    path = last_checkpoint(work / "training")
    shutil.copytree(path, tmp_path / path.name)
    for folder in (tmp_path, tmp_path / path.name):
        assert load_trained(folder, work / "tokenizer", "cpu").step == 2
    assert load_vocabulary(work / "tokenizer").fingerprint


def test_the_verb_asks_tasks_by_name(work, tmp_path):
    out = tmp_path / "found.json"
    common = ["evaluate", str(work / "training"), "--tokenizer", str(work / "tokenizer")]
    common += ["--out", str(out)]
    runner = CliRunner()
    done = runner.invoke(application(), [*common, "--task", "phonebook:4", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads(out.read_text())
    assert json.loads(done.stdout)["tasks"]["phonebook"]["asked"] == 200
    unknown = runner.invoke(application(), [*common, "--task", "phone"])
    assert unknown.exit_code == 2
    assert "task 'phone' is unknown" in unknown.stderr
    lonely = runner.invoke(application(), [*common, "--by", "domain"])
    assert "--mixture, --by, --dataset and --lm-eval belong to a --task" in lonely.stderr
