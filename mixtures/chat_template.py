"""The chat template: the one that servers render, and the same in segments, for training.

The layout is that of NVIDIA-Nemotron-Nano-9B-v2: `<SPECIAL_10>System`, `<SPECIAL_11>User` and
`<SPECIAL_11>Assistant` lines begin the turns, `<SPECIAL_12>` ends an assistant's. Reasoning is on
unless `enable_thinking` is false, and `/think` or `/no_think` as the first or last word of a system
or user message overrules that, the last one given; the flag itself is taken out of the text. (There
a flag counts anywhere and is cut out of longer words, too: "/thinking" becomes "ing".) Before its
answer a turn is `<think>`, a trace and `</think>`, or an empty `<think></think>`; earlier turns are
shown without either, so a conversation costs no old traces.

A server fills the Jinja text in and parses the whole string, so a user who types `<SPECIAL_12>`
ends a turn there (transformers from 5.20 has `sanitize_control_tokens` against that, vLLM nothing).
What is trained on never is that string: `render` keeps special tokens apart from text as ids, and
text that spells one is encoded as text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mixtures.special_tokens import END_OF_TURN_ID, SPECIAL_TOKENS

Message = Mapping[str, str | None]
"""role, content and, of an assistant, reasoning_content."""

SYSTEM_ID, TURN_ID = 10, 11
THINK_ID, END_OF_THINKING_ID = (SPECIAL_TOKENS.index(t) for t in ("<think>", "</think>"))
CHAT_IDS = (SYSTEM_ID, TURN_ID, END_OF_TURN_ID, THINK_ID, END_OF_THINKING_ID)
FLAGS = {"/think": True, "/no_think": False}

CHAT_TEMPLATE = """\
{%- macro without_flags(text) -%}
    {%- set state = namespace(text=text.strip()) -%}
    {%- if state.text.split()[:1] in [['/think'], ['/no_think']] -%}
        {%- set state.text = state.text[state.text.split()[0] | length:].strip() -%}
    {%- endif -%}
    {%- if state.text.split()[-1:] in [['/think'], ['/no_think']] -%}
        {%- set state.text = state.text[:-(state.text.split()[-1] | length)].strip() -%}
    {%- endif -%}
    {{- state.text -}}
{%- endmacro -%}
{%- if tools -%}
    {{- raise_exception('This chat template has no tools.') -}}
{%- endif -%}
{%- set chat = namespace(thinking=true) -%}
{%- if enable_thinking is defined and enable_thinking is not none -%}
    {%- set chat.thinking = enable_thinking -%}
{%- endif -%}
{%- for message in messages if message['role'] in ['system', 'user'] -%}
    {%- for word in message['content'].split()[:1] + message['content'].split()[-1:] -%}
        {%- if word in ['/think', '/no_think'] -%}
            {%- set chat.thinking = word == '/think' -%}
        {%- endif -%}
    {%- endfor -%}
{%- endfor -%}
{%- if not messages or messages[0]['role'] != 'system' -%}
    {{- '<SPECIAL_10>System\\n\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' and loop.first -%}
        {{- '<SPECIAL_10>System\\n' + without_flags(message['content']) + '\\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<SPECIAL_11>User\\n' + without_flags(message['content']) + '\\n' -}}
    {%- elif message['role'] == 'assistant' and not message['tool_calls'] -%}
        {%- set content = message['content'] or '' -%}
        {%- set reasoning = message['reasoning_content'] or '' -%}
        {%- if message['reasoning_content'] is not string and '</think>' in content -%}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1] -%}
            {%- set content = content.split('</think>')[-1] -%}
        {%- endif -%}
        {{- '<SPECIAL_11>Assistant\\n' -}}
        {%- if loop.last and not add_generation_prompt and chat.thinking -%}
            {{- '<think>\\n' + reasoning.strip() + '\\n</think>\\n\\n' -}}
        {%- elif loop.last and not add_generation_prompt -%}
            {{- '<think></think>' -}}
        {%- endif -%}
        {{- content.strip() + '\\n<SPECIAL_12>\\n' -}}
    {%- else -%}
        {{- raise_exception('Roles here: system (first), user and assistant (no tool calls).') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<SPECIAL_11>Assistant\\n' + ('<think>\\n' if chat.thinking else '<think></think>') -}}
{%- endif -%}
"""
"""The Jinja text that `Vocabulary.write_hf` writes. What it gives, `render` gives."""


class Segment(NamedTuple):
    """A stretch of a rendered conversation."""

    text: str
    """Of a special token its name."""
    token: int | None
    """The id of a special token; None for text, which is encoded by itself."""
    trained: bool
    """Whether it is what the model is to write."""


def render(
    messages: Sequence[Message], thinking: bool = True, add_generation_prompt: bool = False
) -> list[Segment]:
    """Renders a conversation as the chat template does.

    Trained on is what a server lets the model write: of each assistant's turn the answer and the
    end of the turn, of the last one also the trace and its end. What begins a turn is given to the
    model and not trained on, `<think>` included.

    Args:
        messages: roles as the template takes them, system first if at all.
        thinking: whether reasoning is on where no message has a flag.
        add_generation_prompt: end with the beginning of an assistant's turn.

    Raises:
        ValueError: a role is unknown, or system and not first.
    """
    thinking = reasons(messages, thinking)
    segments: list[Segment] = []
    if not messages or messages[0]["role"] != "system":
        segments += _given(SYSTEM_ID, "System\n\n")
    for number, message in enumerate(messages):
        if message["role"] == "system" and number == 0:
            segments += _given(SYSTEM_ID, f"System\n{_without_flags(_content(message))}\n")
        elif message["role"] == "user":
            segments += _given(TURN_ID, f"User\n{_without_flags(_content(message))}\n")
        elif message["role"] == "assistant":
            opens = number == len(messages) - 1 and not add_generation_prompt
            segments += _turn(message, thinking if opens else None)
        else:
            raise ValueError(
                f"render: message {number} has the role {message['role']!r}; wanted system "
                f"(first), user or assistant"
            )
    if add_generation_prompt:
        segments += _begin(thinking)
    return segments


def reasons(messages: Iterable[Message], thinking: bool) -> bool:
    """Returns whether reasoning is on: what the last flag in the messages says, else `thinking`."""
    for message in messages:
        if message["role"] in ("system", "user"):
            words = _content(message).split()
            for word in words[:1] + words[-1:]:
                thinking = FLAGS.get(word, thinking)
    return thinking


def trace_and_answer(message: Message) -> tuple[str, str]:
    """Returns an assistant's reasoning and its answer, each without white space around it.

    Reasoning is reasoning_content or, where that is null, what stands before `</think>` in content.
    """
    content, reasoning = _content(message), message.get("reasoning_content")
    if reasoning is None and "</think>" in content:
        reasoning = content.split("</think>")[0].split("<think>")[-1]
        content = content.split("</think>")[-1]
    return (reasoning or "").strip(), content.strip()


def _turn(message: Message, thinking: bool | None) -> list[Segment]:
    """Returns an assistant's turn; one of the past, without a trace, where thinking is None."""
    trace, answer = trace_and_answer(message)
    segments = _begin(thinking)
    if thinking:
        segments += [Segment(f"{trace}\n", None, True), _special(END_OF_THINKING_ID, True)]
        answer = f"\n\n{answer}"
    segments += [Segment(f"{answer}\n", None, True), _special(END_OF_TURN_ID, True)]
    return [*segments, Segment("\n", None, False)]


def _begin(thinking: bool | None) -> list[Segment]:
    segments = _given(TURN_ID, "Assistant\n")
    if thinking is not None:
        segments.append(_special(THINK_ID, False))
        end = _special(END_OF_THINKING_ID, False)
        segments.append(Segment("\n", None, False) if thinking else end)
    return segments


def _given(token: int, text: str) -> list[Segment]:
    return [_special(token, False), Segment(text, None, False)]


def _special(token: int, trained: bool) -> Segment:
    return Segment(SPECIAL_TOKENS[token], token, trained)


def _content(message: Message) -> str:
    return message["content"] or ""


def _without_flags(text: str) -> str:
    text = text.strip()
    if words := text.split(maxsplit=1)[:1]:
        text = text[len(words[0]) :].strip() if words[0] in FLAGS else text
    if words := text.rsplit(maxsplit=1)[-1:]:
        text = text[: -len(words[0])].strip() if words[0] in FLAGS else text
    return text


def check_chat_ids(special_tokens: Mapping[str, int], who: str) -> None:
    """Checks that a vocabulary has the template's special tokens at their ids.

    Raises:
        ValueError: it has not, as an imported one may.
    """
    wanted = {SPECIAL_TOKENS[token]: token for token in CHAT_IDS}
    other = {name: special_tokens.get(name) for name in wanted}
    if other != wanted:
        raise ValueError(
            f"{who} has not the special tokens that conversations are written with: wanted "
            f"{wanted}, got {other}. Tokenize texts with it, or conversations with a vocabulary of "
            "gristmill tokenizer train"
        )
