"""A needle in a haystack: one sentence with a number, hidden in held-out text, and asked behind it.

The haystack is held-out text of the mixture, documents one behind the other, cut between words so
that text, needle and question together have the stated number of tokens, or less by a word. The
needle stands between two sentences, as near to the stated depth as there is a place. Haystacks,
names and numbers are the same at every depth, so depths are compared on equal items.

Source: Kamradt 2023, Needle in a haystack; the sentence is that of RULER's single retrieval, Hsieh
et al. 2024, arXiv:2404.06654, with names that `synth.phonebook` holds out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixtures.holdout import held_out
from mixtures.vocabulary import Vocabulary
from synth.phonebook import full_names
from synth.problems import keyed
from training_hook.evaluation.exact_match import Item

LENGTHS = (128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
"""Lengths that are asked where none are named, up to that of training."""
HAYSTACKS = 8
"""Held-out text to read, in items of the greatest length, of each part."""

FACT = "The special magic number for {} is"
_WORD = re.compile(r"\S+\s*")
_SENTENCE_END = re.compile(r"[.!?:;][\"')\]]*\s+$|\n\s*$")


@dataclass(frozen=True)
class Needle:
    """Which haystacks are searched."""

    lengths: tuple[int, ...] = ()
    """Tokens; those of LENGTHS that the model was trained on, where none are given."""
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    """Percent of the haystack before the needle."""
    num_items: int = 20
    """Of each length and depth."""
    seed: int = 7

    def items(self, texts: Sequence[str], vocabulary: Vocabulary, length: int) -> list[Item]:
        """Returns the items of one length, from documents in order.

        Raises:
            ValueError: the documents are too short together, or the length is for any text.
        """
        items = []
        for index in range(self.num_items):
            words = _words(texts, self.seed, index, length)
            haystack = _Haystack(words, *_fact(words, self.seed, length, index), length, index)
            items += [haystack.item(depth, vocabulary) for depth in self.depths]
        return items


@dataclass(frozen=True)
class _Haystack:
    """Words, and what is hidden among them."""

    words: Sequence[str]
    name: str
    number: int
    length: int
    index: int

    def item(self, depth: int, vocabulary: Vocabulary) -> Item:
        """Returns the item of a depth with the most words that fit into the length.

        Raises:
            ValueError: none does.
        """
        low, high = 0, len(self.words)
        while low < high:
            middle = (low + high + 1) // 2
            item = self._cut(middle, depth)
            (ids,) = vocabulary.encode_batch([item.prompt + item.answer])
            low, high = (middle, high) if len(ids) <= self.length else (low, middle - 1)
        if not low:
            raise ValueError(
                f"needle: the needle and the question leave no room for text in {self.length} "
                "tokens; ask for longer haystacks"
            )
        return self._cut(low, depth)

    def _cut(self, num_words: int, depth: int) -> Item:
        """Returns the item with the first words."""
        words, question = self.words[:num_words], FACT.format(self.name)
        ends = [place + 1 for place, word in enumerate(words) if _SENTENCE_END.search(word)]
        wanted = num_words * depth / 100
        place = min((0, *ends, num_words), key=lambda end: abs(end - wanted))
        needle = f"{question} {self.number}."
        parts = "".join(words[:place]).rstrip(), needle, "".join(words[place:]).rstrip()
        prompt = " ".join(part for part in parts if part) + f"\n\n{question}"
        labels = {"length": self.length, "depth": depth}
        name = f"needle-{self.length}-{depth}-{self.index}"
        return Item(name, prompt, f" {self.number}.", labels)


def needle_items(
    vocabulary: Vocabulary, max_tokens: int, task: Needle, mixture: Path
) -> list[Item]:
    """Returns the items of all lengths; their labels are `length` and `depth`.

    Args:
        vocabulary: of the model that is to be asked.
        max_tokens: length of the sequences that it was trained on.
        task: which haystacks.
        mixture: folder of the mixture whose held-out text is taken.

    Raises:
        ValueError: a length is more than was trained on, or more than there is held-out text.
    """
    lengths = task.lengths or tuple(length for length in LENGTHS if length <= max_tokens)
    if not lengths:
        raise ValueError(
            f"needle: the model was trained on sequences of {max_tokens} tokens; wanted "
            f"{LENGTHS[0]} or more, or name shorter lengths"
        )
    if max(lengths) > max_tokens:
        raise ValueError(
            f"needle: haystacks of {max(lengths):,} tokens are asked and the model was trained on "
            f"sequences of {max_tokens:,}; ask for shorter ones"
        )
    texts = held_out_texts(mixture, vocabulary, HAYSTACKS * max(lengths))
    return [item for length in lengths for item in task.items(texts, vocabulary, length)]


def held_out_texts(mixture: Path, vocabulary: Vocabulary, max_tokens: int) -> list[str]:
    """Returns held-out texts of a mixture, of each part until it has `max_tokens`.

    Conversations are left out: their marks are no text.

    Raises:
        ValueError: there are none.
    """
    texts = [
        vocabulary.decode(document.tokens[:-1])
        for document in held_out(mixture, max_tokens)
        if document.mask is None
    ]
    if not texts:
        raise ValueError(f"needle: {mixture} holds out no text; mix with a holdout_share")
    return texts


def _words(texts: Sequence[str], seed: int, index: int, length: int) -> list[str]:
    """Returns as many words as there are tokens wanted, from a document that the seed draws."""
    first = keyed("haystack", seed, index, length) % len(texts)
    words: list[str] = []
    for step in range(len(texts)):
        words += _WORD.findall(texts[(first + step) % len(texts)].strip() + "\n\n")
        if len(words) >= length:
            return words[:length]
    raise ValueError(
        f"needle: {len(texts)} held-out documents have {len(words):,} words; haystacks of "
        f"{length:,} tokens want as many. Hold out more, or ask for shorter ones"
    )


def _fact(words: Sequence[str], seed: int, length: int, index: int) -> tuple[str, int]:
    """Returns a name that the haystack does not hold, and a number of seven digits."""
    text, names, tries = " ".join(words), full_names("heldout"), 0
    while True:
        draw = keyed("needle", seed, length, index, tries)
        name = names[draw % len(names)]
        if name not in text:
            return name, 1_000_000 + draw // len(names) % 9_000_000
        tries += 1
