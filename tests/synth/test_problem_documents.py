import json
from itertools import islice

import pytest

from synth.families import FAMILIES
from synth.greatest_divisor import GreatestDivisor
from synth.problem_documents import problem_documents, write_problem_documents
from synth.problems import problems
from synth.prompt_layout import PlainLayout
from synth.verification import is_exact, wrong_steps


def test_documents_have_the_shares_that_were_asked_for():
    rows = list(problem_documents(500, 3, wrong_share=0.2))
    assert len(rows) == len({row["id"] for row in rows}) == 500
    by_family = {name: [row for row in rows if row["family"] == name] for name in FAMILIES}
    assert {name: len(found) for name, found in by_family.items()} == {"chain_sum": 350, "gcd": 150}
    for found in by_family.values():
        assert sum(not row["correct"] for row in found) == len(found) // 5


def test_documents_say_truly_which_are_correct():
    asked = {p.question: p for f in FAMILIES.values() for p in islice(problems(f, "train", 3), 200)}
    for row in problem_documents(200, 3, wrong_share=0.5):
        question, _, completion = row["text"].partition("\nReasoning:")
        problem = asked[question.removeprefix("Question: ")]
        reading = PlainLayout().read(completion)
        assert reading.answer is not None
        assert row["correct"] == is_exact(problem.answer, reading.answer)
        assert wrong_steps(reading.reasoning) == (0 if row["correct"] else 1)


@pytest.mark.parametrize(("share", "wrong"), [(0.0, 0), (1.0, 40)])
def test_documents_with_extreme_shares(share, wrong):
    rows = list(problem_documents(40, 0, wrong_share=share))
    assert sum(not row["correct"] for row in rows) == wrong


def test_documents_never_ask_a_problem_of_another_split():
    families = [GreatestDivisor(max_value=40)]
    train = {row["text"].partition("\n")[0] for row in problem_documents(700, 0, 0, families)}
    heldout = {f"Question: {problem.question}" for problem in problems(families[0], "heldout", 5)}
    assert len(heldout) > 90
    assert not train & heldout


def test_write_problem_documents_gives_the_same_bytes_twice(tmp_path):
    size = write_problem_documents(tmp_path / "a" / "solved.jsonl", 100, 1)
    write_problem_documents(tmp_path / "b.jsonl", 100, 1)
    data = (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a" / "solved.jsonl").read_bytes() == data
    rows = [json.loads(line) for line in data.splitlines()]
    assert size == sum(len(row["text"]) for row in rows)
    assert rows == list(problem_documents(100, 1))


def test_documents_of_wrong_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="wrong_share is 2; wanted 0 to 1"):
        list(problem_documents(10, 0, 2))
    with pytest.raises(ValueError, match="0 documents of 2 families are wanted"):
        list(problem_documents(0, 0))
    with pytest.raises(ValueError, match="Ask for fewer"):
        write_problem_documents(tmp_path / "x", 600, 0, 0.1, [GreatestDivisor(max_value=9)])
    assert not list(tmp_path.iterdir())
