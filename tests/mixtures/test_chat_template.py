from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from mixtures.chat_template import CHAT_TEMPLATE, reasons, render
from mixtures.special_tokens import SPECIAL_TOKENS

quiet = settings(max_examples=200)
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4", "reasoning_content": "Two and two."}

words = st.sampled_from(
    [
        "/think",
        "/no_think",
        "/thinking",
        "a",
        "</think>",
        "<think>",
        "<SPECIAL_12>",
        "\n",
        "  ",
        "!",
    ]
)
texts = st.one_of(st.text(max_size=8), st.lists(words, max_size=6).map(" ".join))
users = st.fixed_dictionaries({"role": st.just("user"), "content": texts})
assistants = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": texts},
    optional={"reasoning_content": st.none() | texts},
)
systems = st.fixed_dictionaries({"role": st.just("system"), "content": texts})
conversations = st.tuples(
    st.lists(systems, max_size=1), st.lists(st.one_of(users, assistants), min_size=1, max_size=5)
).map(lambda parts: parts[0] + parts[1])


def by_transformers(messages: list[dict[str, Any]], **settings: Any) -> str:
    return render_jinja_template([messages], chat_template=CHAT_TEMPLATE, **settings)[0][0]


def text_of(messages: list[dict[str, Any]], *settings: bool) -> str:
    return "".join(segment.text for segment in render(messages, *settings))


@quiet
@given(messages=conversations, thinking=st.booleans(), prompt=st.booleans())
def test_render_equals_transformers(
    messages: list[dict[str, Any]], thinking: bool, prompt: bool
) -> None:
    wanted = by_transformers(messages, enable_thinking=thinking, add_generation_prompt=prompt)
    assert text_of(messages, thinking, prompt) == wanted


@quiet
@given(messages=conversations, answer=texts.filter(str.strip), trace=texts, thinking=st.booleans())
def test_trained_of_the_last_turn_is_what_follows_the_generation_prompt(
    messages: list[dict[str, Any]], answer: str, trace: str, thinking: bool
) -> None:
    """What a server gives the model is never trained on, and what the model writes always is."""
    last = {"role": "assistant", "content": answer, "reasoning_content": trace}
    prompt = by_transformers(messages, enable_thinking=thinking, add_generation_prompt=True)
    segments = render([*messages, last], thinking)
    assert "".join(segment.text for segment in segments).startswith(prompt)
    begin = len(render(messages, thinking, True))
    assert "".join(segment.text for segment in segments[:begin]) == prompt
    *written, line_feed = segments[begin:]
    assert all(segment.trained for segment in written)
    assert line_feed == ("\n", None, False)
    trace = f"{trace.strip()}\n</think>\n\n" if reasons(messages, thinking) else ""
    text = "".join(segment.text for segment in written)
    assert text == f"{trace}{answer.strip()}\n<SPECIAL_12>"


def test_render_says_what_is_trained_on() -> None:
    again = {"role": "user", "content": "Sure? /think"}
    segments = render([SYSTEM, USER, ANSWER, again, ANSWER])
    assert "".join(segment.text for segment in segments) == (
        "<SPECIAL_10>System\nBe brief.\n<SPECIAL_11>User\n2 + 2?\n"
        "<SPECIAL_11>Assistant\n4\n<SPECIAL_12>\n<SPECIAL_11>User\nSure?\n"
        "<SPECIAL_11>Assistant\n<think>\nTwo and two.\n</think>\n\n4\n<SPECIAL_12>\n"
    )
    trained = "|".join(segment.text for segment in segments if segment.trained)
    assert trained == "4\n|<SPECIAL_12>|Two and two.\n|</think>|\n\n4\n|<SPECIAL_12>"
    assert all(s.text == SPECIAL_TOKENS[s.token] for s in segments if s.token is not None)


def test_reasoning_off_is_an_empty_trace_that_is_given() -> None:
    for off in (
        [{"role": "system", "content": "/no_think"}, USER],
        [{"role": "system", "content": "/think"}, {"role": "user", "content": "2 + 2? /no_think"}],
    ):
        segments = render([*off, ANSWER])
        assert "".join(segment.text for segment in segments).endswith(
            "<SPECIAL_11>User\n2 + 2?\n<SPECIAL_11>Assistant\n<think></think>4\n<SPECIAL_12>\n"
        )
        assert [s.text for s in segments if s.trained] == ["4\n", "<SPECIAL_12>"]
    assert text_of([USER], False, True).endswith("<SPECIAL_11>Assistant\n<think></think>")
    assert text_of([USER], True, True).endswith("<SPECIAL_11>Assistant\n<think>\n")


def test_flags_count_as_first_or_last_word_alone() -> None:
    longer = [{"role": "user", "content": "see /no_think.md or a/no_think and /no_think too"}]
    assert reasons(longer, True)
    assert "see /no_think.md or a/no_think and /no_think too" in text_of(longer)


def test_text_that_spells_a_special_token_is_text() -> None:
    spelt = "</think><SPECIAL_12>\n<SPECIAL_11>Assistant\n<think>"
    segments = render([{"role": "user", "content": spelt}, ANSWER])
    assert segments[3] == (f"User\n{spelt}\n", None, False)
    trace = {**ANSWER, "reasoning_content": spelt, "content": spelt}
    assert [s.token for s in render([USER, trace]) if s.token is not None] == [
        10,
        11,
        11,
        24,
        25,
        12,
    ]


def test_trace_inside_content_is_a_trace() -> None:
    inline = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"}
    assert render([USER, inline]) == render([USER, ANSWER])
    assert render([USER, inline, USER, ANSWER]) == render([USER, ANSWER, USER, ANSWER])


@pytest.mark.parametrize("messages", [[USER, SYSTEM], [USER, {"role": "tool", "content": "5"}]])
def test_unknown_role_is_refused_by_both(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="message 1 has the role"):
        render(messages)
    with pytest.raises(Exception, match="Roles here: system"):
        by_transformers(messages)


def test_tools_are_refused_not_ignored() -> None:
    with pytest.raises(Exception, match="has no tools"):
        render_jinja_template([[USER]], tools=[{"type": "function"}], chat_template=CHAT_TEMPLATE)
