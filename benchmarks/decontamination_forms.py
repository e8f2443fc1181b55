"""How a benchmark's problems turn up in text: edits by form, each with a seed of its own."""

import random
import re
from collections.abc import Callable, Sequence

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SENTENCE = re.compile(r"(?<=[.?!])\s+")
QUOTED_WORDS = 10


class Forms:
    """Edits of problems; what is swapped in comes from other problems, so it looks like them.

    Args:
        others: problems of which none is edited.
    """

    def __init__(self, others: Sequence[str]) -> None:
        plain, capitals = set(), set()
        for text in others:
            for word in WORD.findall(text):
                (plain if word.islower() else capitals).add(word)
        self._words = sorted(word for word in plain if len(word) > 2)
        self._names = sorted(w for w in capitals if w.lower() not in plain and w.isalpha())
        self._known_names = set(self._names)
        self.all: dict[str, Callable[[str, random.Random], str]] = {
            "verbatim": lambda text, rng: text,
            "numbers_changed": self.numbers,
            "reformatted": self.reformatted,
            "words_swapped_1": lambda text, rng: self.words(text, rng, 1),
            "words_swapped_2": lambda text, rng: self.words(text, rng, 2),
            "words_swapped_3": lambda text, rng: self.words(text, rng, 3),
            "words_swapped_6": lambda text, rng: self.words(text, rng, 6),
            "names_changed": self.names,
            "names_and_numbers_changed": lambda t, rng: self.names(self.numbers(t, rng), rng),
            "sentences_reordered": self.reordered,
            "first_10_words": lambda text, rng: " ".join(text.split()[:QUOTED_WORDS]),
        }

    def numbers(self, text: str, rng: random.Random) -> str:
        """Replaces every number by another one, often of another length."""

        def other(match: re.Match[str]) -> str:
            while (new := f"{rng.randrange(1, 10 ** rng.randint(1, 4)):,}") == match[0]:
                pass
            return new

        return NUMBER.sub(other, text)

    def reformatted(self, text: str, rng: random.Random) -> str:
        """Changes white space, case, punctuation and mark-up, three kinds of five."""
        kinds = [
            lambda t: re.sub(r"(.{1,38})(?: |$)", r"\1\n", t),
            lambda t: t.upper() if rng.random() < 0.5 else t.lower(),
            lambda t: re.sub(r"[.,?!;:$]", "", t),
            lambda t: WORD.sub(lambda m: f"**{m[0]}**" if rng.random() < 0.2 else m[0], t),
            lambda t: "\n".join(f"- {part}" for part in SENTENCE.split(t)),
        ]
        for kind in rng.sample(kinds, 3):
            text = kind(text)
        return text

    def words(self, text: str, rng: random.Random, count: int) -> str:
        """Replaces some words by others, at random places."""
        found = list(WORD.finditer(text))
        chosen = rng.sample(found, min(count, len(found)))
        for match in sorted(chosen, key=lambda m: -m.start()):
            while (new := rng.choice(self._words)) == match[0].lower():
                pass
            text = text[: match.start()] + new + text[match.end() :]
        return text

    def names(self, text: str, rng: random.Random) -> str:
        """Gives every name another one, the same wherever it stands."""
        mapping: dict[str, str] = {}

        def other(match: re.Match[str]) -> str:
            name, mark, end = match[0].partition("'")
            if name not in self._known_names:
                return match[0]
            while mapping.setdefault(name, rng.choice(self._names)) == name:
                del mapping[name]
            return mapping[name] + mark + end

        return WORD.sub(other, text)

    def reordered(self, text: str, rng: random.Random) -> str:
        """Puts the sentences in another order, if there are several."""
        sentences = SENTENCE.split(text)
        order = sentences[:]
        while len(set(sentences)) > 1 and order == sentences:
            rng.shuffle(order)
        return " ".join(order)


def plant(page: str, text: str, rng: random.Random) -> str:
    """Puts a text into a page, at a line's end."""
    lines = page.split("\n")
    at = rng.randrange(len(lines) + 1)
    return "\n".join([*lines[:at], "", text, "", *lines[at:]])
