import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.chain_sum import ChainSum
from synth.families import FAMILIES, find_family
from synth.greatest_divisor import GreatestDivisor
from synth.problems import SPLITS, Family, Problem, problems, split_of, take
from synth.verification import is_exact, wrong_steps

families = st.sampled_from(list(FAMILIES.values()))
keys = st.integers(0, 2**48 - 1)


@given(families, keys)
def test_solution_is_right_and_every_step_holds(family: Family, key: int):
    problem = family.problem(key)
    solution = family.solution(problem)
    assert solution.answer == problem.answer
    assert solution.reasoning
    assert wrong_steps(solution.reasoning) == 0
    assert family.score(problem, solution.answer) == 1.0
    assert is_exact(problem.answer, solution.answer)


@given(families, keys, st.integers(0, 1000))
def test_wrong_solution_has_another_answer_and_one_wrong_step(family: Family, key: int, seed: int):
    problem = family.problem(key)
    solution = family.wrong_solution(problem, seed)
    assert solution.answer != problem.answer
    assert solution == family.wrong_solution(problem, seed)
    assert wrong_steps(solution.reasoning) == 1
    assert family.score(problem, solution.answer) < 1.0
    # what follows the slip is consistent: the answer is what the last step says
    last = re.findall(r"-?\d+", solution.reasoning)
    assert solution.answer == last[-1]


@given(keys)
def test_chain_sum_numbers_are_the_terms_of_the_question(key: int):
    problem = ChainSum().problem(key)
    expression = problem.question.partition(": ")[2].removesuffix(" =")
    assert eval(expression) == sum(problem.numbers) == int(problem.answer)
    assert 2 <= len(problem.numbers) <= 3


def test_family_with_other_bounds_keeps_to_them():
    wide = ChainSum(max_terms=2, max_digits=1)
    assert all(len(wide.problem(key).numbers) == 2 for key in range(50))
    assert all(max(GreatestDivisor(max_value=9).problem(key).numbers) <= 9 for key in range(50))


@given(families, keys, st.randoms())
def test_split_does_not_depend_on_the_order_of_the_numbers(family: Family, key: int, random):
    problem = family.problem(key)
    numbers = list(problem.numbers)
    random.shuffle(numbers)
    assert split_of(dataclasses.replace(problem, numbers=tuple(numbers))) == split_of(problem)


def test_splits_share_no_problem_and_have_their_shares():
    family = GreatestDivisor(max_value=40)
    found = {split: {p.question for p in problems(family, split, 0)} for split in SPLITS}
    total = sum(map(len, found.values()))
    assert total == len(set().union(*found.values()))
    assert total > 1_400
    for split, share in SPLITS.items():
        assert len(found[split]) / total == pytest.approx(share, abs=0.03)
    other_seed = {p.question for p in take(family, "heldout", 1, 60)}
    assert other_seed.isdisjoint(found["train"] | found["sft"])


def test_take_gives_distinct_problems_and_the_same_ones_again():
    for family in FAMILIES.values():
        found = take(family, "sft", 7, 200)
        assert len({problem.id for problem in found}) == 200
        assert found == take(family, "sft", 7, 200)
        assert found[:20] == take(family, "sft", 7, 20)
        assert found != take(family, "sft", 8, 200)
        assert {split_of(problem) for problem in found} == {"sft"}


def test_take_of_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"gcd: 100 problems of split 'train' are wanted and Gr"):
        take(GreatestDivisor(max_value=5), "train", 0, 100)
    assert take(GreatestDivisor(max_value=5), "train", 0, 0) == []


def test_unknown_split_and_family_are_refused():
    with pytest.raises(ValueError, match="split is 'test'; wanted one of: train, sft, heldout"):
        next(problems(ChainSum(), "test", 0))
    with pytest.raises(ValueError, match="family 'chess' is unknown; families: chain_sum, gcd"):
        find_family("chess")


def test_problem_id_is_the_same_on_every_machine():
    question = "State the final answer to the following arithmetic problem: 47 + 38 ="
    found = Problem("", "chain_sum", question, "85", (47, 38))
    assert split_of(found) == "sft"
    assert ChainSum().problem(1).id == "f9f9f1e87047384a3188bf17d2a89d43"
