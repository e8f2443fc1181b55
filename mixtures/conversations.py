"""Conversations as tokens, and for each token whether a model is trained to write it.

A row's `messages` is rendered by `mixtures.chat_template` in segments; special tokens become their
ids, text becomes the tokens of text alone. A document is the conversation and, as every document,
`</s>`, which is not trained on: `<SPECIAL_12>` ends what the model writes.

Text is encoded segment by segment. That gives the ids of the whole string, as a server encodes it,
since segments of text meet only where a line feed is followed by no white space, and no token of
our vocabularies crosses that border.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mixtures.chat_template import Message, Segment, reasons, render, trace_and_answer
from mixtures.vocabulary import Vocabulary

COLUMN = "messages"
FIELDS = ("role", "content", "reasoning_content")
ROLES = ("system", "user", "assistant")

VERDICTS = {
    "no_messages": "null or empty",
    "unknown_role": "a role that is none of system, user, assistant",
    "no_content": "a null content",
    "wrong_order": "not: a system message or none, then user and assistant by turns, to an answer",
    "empty_answer": "an assistant's turn without an answer",
    "no_trace": "/think, but no trace to train on",
}
"""Why a conversation is not trained on: each is counted, none is repaired."""


class Encoded(NamedTuple):
    """A conversation in tokens, without the `</s>` that is to follow."""

    tokens: np.ndarray
    """In the stored type."""
    mask: np.ndarray
    """uint8, 1 where a token is trained on."""
    size_bytes: int
    """Of the text that is trained on, in UTF-8, special tokens left out."""


def check_type(type: pa.DataType, where: str) -> None:
    """Checks that a column holds conversations.

    Raises:
        ValueError: it is no list of structs of role, content and maybe reasoning_content, each a
            string. Other fields (tool calls, images) are refused: they would be lost unseen.
    """
    listed = pa.types.is_list(type) or pa.types.is_large_list(type)
    fields: dict[str, pa.DataType] = {}
    if listed and pa.types.is_struct(type.value_type):
        fields = {field.name: field.type for field in type.value_type.fields}
    strings = all(pa.types.is_string(t) or pa.types.is_large_string(t) for t in fields.values())
    if not strings or not {"role", "content"} <= fields.keys() <= set(FIELDS):
        raise ValueError(
            f"{where}: column {COLUMN!r} is {type}; wanted a list of structs of strings: role, "
            f"content and, if there are any traces, reasoning_content. Make one in the recipe."
        )


def verdict(row: Sequence[Message | None] | None) -> str | None:
    """Returns why a conversation cannot be trained on (a key of VERDICTS), None if it can."""
    if not row:
        return "no_messages"
    messages = [message or {"role": None, "content": None} for message in row]
    roles = [message["role"] for message in messages]
    if not set(roles) <= set(ROLES):
        return "unknown_role"
    if any(message["content"] is None for message in messages):
        return "no_content"
    turns = roles[roles[0] == "system" :]
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        return "wrong_order"
    answers = [trace_and_answer(m) for m in messages if m["role"] == "assistant"]
    if not all(answer for _, answer in answers):
        return "empty_answer"
    trace = answers[-1][0]
    return "no_trace" if not trace and reasons(messages, False) else None


def render_for_training(messages: Sequence[Message]) -> list[Segment]:
    """Renders a conversation with reasoning on if its last turn has a trace.

    A flag in the messages overrules that, so /no_think strips a trace.
    """
    return render(messages, thinking=bool(trace_and_answer(messages[-1])[0]))


def encode(conversations: Sequence[Sequence[Segment]], vocabulary: Vocabulary) -> list[Encoded]:
    """Encodes rendered conversations."""
    texts = [s.text for segments in conversations for s in segments if s.token is None]
    encoded = iter(vocabulary.encode_batch(texts))
    documents = []
    for segments in conversations:
        parts = [
            next(encoded) if s.token is None else np.array([s.token], vocabulary.dtype)
            for s in segments
        ]
        trained = np.array([s.trained for s in segments], np.uint8)
        mask = np.repeat(trained, [len(part) for part in parts])
        size = sum(len(s.text.encode()) for s in segments if s.trained and s.token is None)
        documents.append(Encoded(np.concatenate(parts), mask, size))
    return documents
