import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.families import FAMILIES
from synth.math_verifier import MathVerifier
from synth.problems import Family
from synth.prompt_layout import Reading
from synth.verification import RULES, is_exact, judge, wrong_steps

SUM = FAMILIES["chain_sum"]
PROBLEM = SUM.problem(1)
SOLVED = SUM.solution(PROBLEM)


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier() as found:
        assert found.accepts("1", "1")  # starts its process, which takes longer than a deadline
        yield found


@given(
    family=st.sampled_from(list(FAMILIES.values())),
    key=st.integers(0, 2**48 - 1),
    right=st.booleans(),
)
def test_written_solutions_are_judged_as_what_they_are(
    verifier: MathVerifier, family: Family, key: int, right: bool
):
    problem = family.problem(key)
    solution = family.solution(problem) if right else family.wrong_solution(problem, 0)
    reading = Reading(solution.reasoning, solution.answer)
    found = judge(problem, reading, "stop", verifier)
    assert found.reason == (None if right else "wrong_answer")
    assert set(found.verdicts.values()) == {right}
    assert found.broken["wrong_step"] != right


@pytest.mark.parametrize(
    ("reasoning", "answer", "finish", "reason"),
    [
        (SOLVED.reasoning, SOLVED.answer, "stop", None),
        (SOLVED.reasoning, SOLVED.answer, "length", "truncated"),
        (SOLVED.reasoning, None, "stop", "no_answer"),
        (SOLVED.reasoning, "7777", "stop", "wrong_answer"),
        (SOLVED.reasoning, "seven", "stop", "wrong_answer"),
        (SOLVED.reasoning, f"{SOLVED.answer} + 0", "stop", "verifier_disagrees"),
        ("", SOLVED.answer, "stop", "no_reasoning"),
        (f"2 + 2 = 5. {SOLVED.reasoning}", SOLVED.answer, "stop", "wrong_step"),
    ],
)
def test_every_reason_for_a_rejection(reasoning, answer, finish, reason, verifier):
    found = judge(PROBLEM, Reading(reasoning, answer), finish, verifier)
    assert found.reason == reason
    assert list(found.broken) == list(RULES)


def test_verifier_that_fails_rejects_what_the_others_accept(verifier, monkeypatch):
    monkeypatch.setattr(verifier, "accepts", lambda expected, answer: None)
    found = judge(PROBLEM, Reading(SOLVED.reasoning, SOLVED.answer), "stop", verifier)
    assert found.reason == "verifier_failed"
    assert found.verdicts == {"exact": True, "reasoning_gym": True, "math_verify": None}


@pytest.mark.parametrize(
    ("expected", "answer", "exact"),
    [
        ("85", "85", True),
        ("-5", "-5", True),
        ("5", "+05", True),
        ("85", "85.", False),
        ("85", "8 5", False),
        ("85", "85\n", False),
        ("85", "9" * 5_000, False),
        ("85", "\u0668\u0665", False),
    ],
)
def test_is_exact(expected, answer, exact):
    assert is_exact(expected, answer) == exact


@pytest.mark.parametrize(
    ("reasoning", "wrong"),
    [
        ("", 0),
        ("1 + 1 = 2.", 0),
        ("1 + 1 = 3.", 1),
        ("1 + 1 = 2 = 3", 1),
        ("1 + 1 = 3 = 2", 2),
        ("98 = 42 * 2 + 14. 42 = 14 * 3 + 1.", 1),
        ("2 + 3 * 4 = 14, 2 * 3 + 4 = 10, 2 - 3 * 4 - 5 = -15, 5 - -3 = 8", 0),
        ("-80 + 40 = -40, -80 - 40 = -40.", 1),
        ("x1 + 1 = 3, 2.5 + 2 = 9, 1 + 1 = 2.5, 4 = 8 / 2, 5 = 2 + x, 8 / 2 = 4", 0),
        ("so 2 plus 2 is 5", 0),
        ("1 - 19 * 78 * 82 * 84 * 98 = 1000385569.", 1),
    ],
)
def test_wrong_steps_counts_equations_that_do_not_hold(reasoning, wrong):
    assert wrong_steps(reasoning) == wrong


@given(
    st.lists(st.tuples(st.sampled_from("+-*"), st.integers(-99, 99)), max_size=5),
    st.integers(-99, 99),
)
def test_wrong_steps_agrees_with_python(terms, first):
    expression = " ".join([str(first), *(f"{sign} {number}" for sign, number in terms)])
    assert wrong_steps(f"{expression} = {eval(expression)}.") == 0
    assert wrong_steps(f"{expression} = {eval(expression) + 1}.") == 1


@pytest.mark.parametrize(
    ("expected", "answer", "equal"),
    [
        ("1/2", "0.5", True),
        ("42", "41", False),
        (r"\frac{1}{2}", r"$\frac{2}{4}$", True),
        ("85", "", False),
    ],
)
def test_math_verifier_compares_as_mathematics(expected, answer, equal, verifier):
    assert verifier.accepts(expected, answer) is equal


def test_math_verifier_gives_up_and_goes_on():
    with MathVerifier(timeout_s=1.0) as found:
        assert found.accepts("5", "5") is True
        assert found.accepts("5", "$9^{9^{9^{9}}}$") is None
        assert found.accepts("6", "6") is True
