import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.problems import Solution
from synth.prompt_layout import ChatLayout, PlainLayout, Reading

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(str.strip)


@given(words, words, words.filter(lambda text: text and "\nAnswer:" not in text))
def test_plain_document_is_read_back(question, reasoning, answer):
    layout = PlainLayout()
    document = layout.document(question, Solution(reasoning, answer))
    prompt = layout.prompt(question)["prompt"]
    assert document.startswith(prompt)
    assert layout.read(document.removeprefix(prompt)) == Reading(reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        (" 1 + 1 = 2.\nAnswer: 2", "1 + 1 = 2.", "2"),
        (" 1 + 1 = 2.\nAnswer:", "1 + 1 = 2.", None),
        (" 1 + 1 = 2", "1 + 1 = 2", None),
        (" I say Answer: 2", "I say Answer: 2", None),
        ("a\nAnswer: 1\nAnswer: 2", "a\nAnswer: 1", "2"),
        ("", "", None),
    ],
)
def test_plain_layout_reads_only_a_line_that_is_an_answer(text, reasoning, answer):
    assert PlainLayout().read(text) == Reading(reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\n1 + 1 = 2.\n</think>\n2", "1 + 1 = 2.", "2"),
        ("1 + 1 = 2.</think>Answer: 2</s>", "1 + 1 = 2.", "2"),
        (r"t</think>It is \boxed{2}.<SPECIAL_12>", "t", "2"),
        (r"t</think>Not \boxed{1} but \boxed{2}", "t", "2"),
        ("t</think>", "t", None),
        ("2", "", "2"),
    ],
)
def test_chat_layout_parts_thought_and_answer(text, reasoning, answer):
    assert ChatLayout().read(text) == Reading(reasoning, answer)
