import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.report import write_report
from pipelines.dataset import Dataset
from pipelines.explain import examples, why
from synth.chain_sum import ChainSum
from synth.engine import ClientSettings
from synth.greatest_divisor import GreatestDivisor
from synth.problems import problems, split_of
from synth.recipe import SynthRecipe
from synth.sampling import Sampling
from synth.synthesize import JOURNAL, synthesize
from tests.synth.conftest import Loopback

RECIPE = SynthRecipe(
    "small", (ChainSum(), GreatestDivisor()), num_problems=6, num_samples=8, sampling=Sampling(0.5)
)
KINDS = ("right", "wrong", "no answer", "no reasoning", "wrong step", "same")


def reply(recipe: SynthRecipe):
    """Answers as a weak model would: a function of prompt and seed."""
    families = {family.name: family for family in recipe.families}
    asked = {
        recipe.layout.prompt(problem.question)["prompt"]: problem
        for problem in recipe.problems().values()
    }

    def answer(body) -> str:
        problem = asked[body["prompt"]]
        family = families[problem.family]
        right = family.solution(problem)
        return {
            "right": f" {right.reasoning} Sample {body['seed']}.\nAnswer: {right.answer}",
            "wrong": f" {right.reasoning}\nAnswer: {int(right.answer) + 1}",
            "no answer": f" {right.reasoning}",
            "no reasoning": f"\nAnswer: {right.answer}",
            "wrong step": f" 1 + 1 = 3. {right.reasoning}\nAnswer: {right.answer}",
            "same": f" {right.reasoning}\nAnswer: {right.answer}",
        }[KINDS[body["seed"] % len(KINDS)]]

    return answer


def files(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in (JOURNAL, "report.html")
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset and the number of requests that it took."""
    server = Loopback(reply(RECIPE))
    out = tmp_path_factory.mktemp("synth") / "out"
    manifest = synthesize(RECIPE, server.url, out)
    server.close()
    return out, manifest, len(server.bodies)


def test_every_sample_is_asked_once_and_has_one_row(made):
    out, manifest, asked = made
    assert asked == 2 * 6 * 8 == manifest["documents_in"]
    dataset = Dataset(out)
    ledger = dataset.table("ledger").to_pylist()
    made_by = [(r["prompt_hash"], r["temperature"], r["top_p"], r["seed"]) for r in ledger]
    assert len(set(made_by)) == len({row["id"] for row in ledger}) == len(ledger) == asked
    kept = {row["id"] for row in dataset.table("data", ["id"]).to_pylist()}
    dropped = {row["id"] for row in dataset.table("dropped", ["id"]).to_pylist()}
    assert kept | dropped == {row["id"] for row in ledger}
    assert not kept & dropped
    assert len(kept) == manifest["kept"] > 0
    assert kept == {row["id"] for row in ledger if row["dropped_by"] is None}
    assert manifest["kept"] + manifest["dropped"] == asked


def test_rejected_traces_keep_their_reason(made):
    out, manifest, _ = made
    expected = {"wrong": "wrong_answer", "no answer": "no_answer", "wrong step": "wrong_step"}
    expected |= {"no reasoning": "no_reasoning", "right": None}
    for row in Dataset(out).table("ledger").to_pylist():
        kind = KINDS[row["seed"] % len(KINDS)]
        if kind in expected:
            assert row["dropped_by"] == expected[kind]
        else:
            assert row["dropped_by"] in (None, "duplicate_text")
    dropped = {rule["name"]: rule["dropped"] for rule in manifest["rules"]}
    assert sum(dropped.values()) == manifest["dropped"]
    fired = {"wrong_answer", "no_answer", "wrong_step", "no_reasoning", "duplicate_text"}
    assert {name for name, number in dropped.items() if number} == fired


def test_accepted_traces_are_messages_with_all_that_made_them(made):
    out, manifest, _ = made
    asked = RECIPE.problems()
    for row in Dataset(out).table("data").to_pylist():
        problem = asked[row["problem_id"]]
        assert split_of(problem) == "sft"
        user, assistant = row["messages"]
        assert user == {"role": "user", "content": problem.question, "reasoning_content": None}
        assert (assistant["role"], assistant["content"]) == ("assistant", problem.answer)
        assert assistant["reasoning_content"]
        assert row["text"].startswith(f"Question: {problem.question}\nReasoning:")
        assert row["text"].endswith(row["generated"])
        assert row["model_revision"] == manifest["recipe"]["model_revision"] == "ab" * 32
        assert row["token_ids"] == list(row["generated"].encode())
        assert len(row["log_probabilities"]) == len(row["token_ids"])
        assert (row["temperature"], row["max_tokens"], row["finish_reason"]) == (0.5, 256, "stop")


def test_why_show_and_report_work_on_traces(made):
    out, manifest, _ = made
    dataset = Dataset(out)
    duplicate = examples(dataset, "duplicate_text", 1)[0]
    found = why(dataset, duplicate["id"][:12])
    assert found["outcome"] == "duplicate_text"
    assert found["kept_copy"]["generated"] == duplicate["generated"]
    assert found["kept_copy"]["problem_id"] == duplicate["problem_id"]
    wrong = examples(dataset, "wrong_answer", 2)
    assert len(wrong) == 2
    assert why(dataset, wrong[0]["id"])["ledger"]["exact"] is False
    page = write_report(out).read_text()
    assert "wrong_answer" in page
    assert f"{manifest['documents_in']}" in page


def test_same_answers_in_another_order_give_the_same_bytes(made, tmp_path):
    out, manifest, _ = made
    lines = (out / JOURNAL).read_bytes().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / JOURNAL).write_bytes(b"".join(lines))
    server = Loopback(lambda body: 500)
    assert synthesize(RECIPE, server.url, tmp_path / "again") == manifest
    server.close()
    assert not server.bodies
    assert files(tmp_path / "again") == files(out)


def test_finished_dataset_is_taken_as_it_is_and_another_is_refused(made):
    out, manifest, _ = made
    server = Loopback(lambda body: 500)
    assert synthesize(RECIPE, server.url, out) == manifest
    with pytest.raises(ValueError, match="holds a dataset of recipe small with fingerprint"):
        synthesize(dataclasses.replace(RECIPE, num_samples=9), server.url, out)
    server.name = f"model@{'cd' * 32}"
    with pytest.raises(ValueError, match="holds a dataset of recipe small with fingerprint"):
        synthesize(RECIPE, server.url, out)
    server.close()
    assert not server.bodies


def test_nothing_is_committed_if_too_few_are_accepted(tmp_path, loopback):
    server = loopback(lambda body: "I do not know.")
    recipe = dataclasses.replace(RECIPE, num_samples=2)
    with pytest.raises(RuntimeError, match="0 of 24 traces are accepted, wanted 1: no_answer 24"):
        synthesize(recipe, server.url, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(ValueError, match="holds an unfinished run"):
        synthesize(dataclasses.replace(recipe, min_accepted=0), server.url, tmp_path / "out")
    assert len(server.bodies) == 24


def test_all_rejected_can_be_allowed(tmp_path, loopback):
    server = loopback(lambda body: "I do not know.")
    recipe = dataclasses.replace(RECIPE, num_samples=1, min_accepted=0)
    manifest = synthesize(recipe, server.url, tmp_path / "out")
    assert (manifest["kept"], manifest["dropped"]) == (0, 12)
    assert Dataset(tmp_path / "out").table("data").num_rows == 0
    assert manifest["files"][0]["rows"] == 0
    assert pq.read_table(tmp_path / "out" / "dropped").num_rows == 12


def test_folder_with_something_else_is_refused(tmp_path, loopback):
    (tmp_path / "notes.txt").write_text("mine")
    server = loopback(reply(RECIPE))
    with pytest.raises(ValueError, match="exists and is no dataset"):
        synthesize(RECIPE, server.url, tmp_path)
    assert not server.bodies


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "split is 'test'; wanted one of"),
        ({"families": ()}, "wanted one or more, each once"),
        ({"families": (ChainSum(), ChainSum(2, 1))}, "wanted one or more, each once"),
        ({"num_samples": 0}, "num_samples is 0; wanted 1 or more"),
    ],
)
def test_recipe_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPE, **change)


def test_recipe_seeds_are_all_different_for_a_problem():
    wanted = list(RECIPE.requests(RECIPE.problems(), "ab" * 32))
    assert len({(request.problem_id, request.seed) for request in wanted}) == len(wanted)
    assert len({request.identity for request in wanted}) == len(wanted)
    assert all(0 <= request.seed < 2**53 for request in wanted)
    assert wanted == list(RECIPE.requests(RECIPE.problems(), "ab" * 32))


def test_recipe_never_asks_what_a_model_was_trained_on():
    family = GreatestDivisor(max_value=30)
    train = {problem.question for problem in problems(family, "train", 0)}
    recipe = dataclasses.replace(RECIPE, families=(family,), num_problems=60)
    assert not train & {problem.question for problem in recipe.problems().values()}


CLIENT = """
import sys
from synth.engine import ClientSettings
from synth.synthesize import synthesize
from tests.synth.test_synthesize import RECIPE
synthesize(RECIPE, sys.argv[1], sys.argv[2], ClientSettings(concurrency=4))
"""


def test_killed_client_asks_again_at_most_for_what_was_in_flight(made, tmp_path, loopback):
    out, manifest, total = made
    server = loopback(reply(RECIPE))
    server.delay_s = 0.05
    command = [sys.executable, "-c", CLIENT, server.url, str(tmp_path / "out")]
    for stop in (20, 60):
        with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as client:
            while len(server.bodies) < stop:
                assert client.poll() is None
                time.sleep(0.005)
            client.send_signal(signal.SIGKILL)
    server.delay_s = 0.0
    client = ClientSettings(concurrency=4)
    assert synthesize(RECIPE, server.url, tmp_path / "out", client) == manifest
    asked = [json.dumps([body["prompt"], body["seed"]]) for body in server.bodies]
    assert len(set(asked)) == total
    assert len(asked) - total <= 2 * 4
    assert files(tmp_path / "out") == files(out)
