"""Phonebook recall: the number of a name that stands in a list, by the length of the list.

The names are those of the held-out split of `synth.phonebook`, none of which is in any training
book. A pure state-space model loses the list as it grows; attention keeps it up to the length that
was trained (Jelassi et al. 2024, arXiv:2402.01032; Waleffe et al. 2024, arXiv:2406.07887).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from synth.phonebook import make_book
from training_hook.evaluation.exact_match import (
    BATCH_TOKENS,
    Encoder,
    Item,
    check_lengths,
    encode_items,
    score_items,
)
from training_hook.model import HybridModel

ENTRIES = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Lengths of lists that are asked where none are named, as far as they fit."""


@dataclass(frozen=True)
class Phonebook:
    """Which books are asked."""

    entries: tuple[int, ...] = ()
    """Lines of the lists; those of ENTRIES that fit, where none are given."""
    num_items: int = 200
    """Books of each length, one question each."""
    num_solved: int = 2
    """Look-ups that stand before the one that is asked, with their answers."""
    seed: int = 7
    digits: int = 10

    def items(self, entries: int) -> list[Item]:
        """Returns the items of one length."""
        items = []
        for index in range(self.num_items):
            book = make_book(self.seed, index, entries, self.num_solved + 1, "heldout", self.digits)
            name = f"phonebook-{entries}-{index}"
            answer = book.answer(book.asked[-1])
            items.append(Item(name, book.prompt(), answer, {"entries": entries}))
        return items


def score_phonebook(
    model: HybridModel,
    vocabulary: Encoder,
    max_tokens: int,
    task: Phonebook,
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Asks a model for numbers of held-out books.

    Args:
        model: on its device.
        vocabulary: the one that it was trained on (`mixtures.vocabulary.load_vocabulary`).
        max_tokens: length of the sequences that it was trained on.
        task: which books.
        batch_tokens: tokens that go through the model at once.
        advance: called with the number of items done; may raise to stop.

    Returns:
        See `exact_match.summarise`; the groups have the label `entries`.

    Raises:
        ValueError: a list that was asked for is too long, or none fits.
    """
    items = phonebook_items(vocabulary, max_tokens, task)
    return score_items(model, vocabulary, items, batch_tokens, advance)


def phonebook_items(vocabulary: Encoder, max_tokens: int, task: Phonebook) -> list[Item]:
    """Returns the items of all lengths; see `score_phonebook`."""
    items = []
    for entries in task.entries or ENTRIES:
        more = task.items(entries)
        encoded = encode_items(vocabulary, more)
        if not task.entries and max(len(item.tokens) - 1 for item in encoded) > max_tokens:
            break
        check_lengths("phonebook", encoded, max_tokens, "ask for shorter lists")
        items += more
    if not items:
        raise ValueError(
            f"phonebook: no list of {ENTRIES[0]} entries fits into {max_tokens:,} tokens"
        )
    return items
