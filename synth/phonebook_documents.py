"""Phone books as pretraining text: from them a model learns to recall from its context.

    python -m synth.phonebook_documents --out phonebook.jsonl --documents 10000 --entries 4 32

`gristmill curate flows.recipes.phonebook:phonebook --source phonebook.jsonl` makes a dataset of it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.atomic import written
from pipelines.document import document_ids
from pipelines.progress import say
from synth.phonebook import make_book
from synth.problems import keyed


def phonebook_documents(
    num_documents: int,
    seed: int,
    entries: tuple[int, int] = (4, 32),
    num_lookups: int = 8,
    split: str = "train",
    digits: int = 10,
) -> Iterator[dict[str, Any]]:
    """Yields books as training documents.

    With digits apart an entry takes 16 to 20 tokens, in the list and in each look-up; choose
    `entries` so that a document fits into the sequences that are trained on.

    Args:
        num_documents: how many.
        seed: of the series.
        entries: fewest and most lines of a list; every length between is as likely.
        num_lookups: look-ups behind each list, at most one for each of its lines.
        split: whose names to use.
        digits: of a number.

    Yields:
        `id` (hash of the text), `text`, `entries`, `lookups`.

    Raises:
        ValueError: a number is wrong, see `make_book`.
    """
    low, high = entries
    if num_documents < 1 or not 1 <= low <= high:
        raise ValueError(
            f"phonebook: {num_documents} documents of {low} to {high} entries are wanted; wanted "
            "1 or more documents, and 1 <= fewest <= most"
        )
    for index in range(num_documents):
        num_entries = low + keyed("phonebook entries", split, seed, index) % (high - low + 1)
        book = make_book(seed, index, num_entries, num_lookups, split, digits)
        text = book.text()
        found = document_ids("phonebook", [split], [text])[0].as_py()
        yield {"id": found, "text": text, "entries": num_entries, "lookups": len(book.asked)}


def write_phonebook_documents(
    out: Path,
    num_documents: int,
    seed: int,
    entries: tuple[int, int] = (4, 32),
    num_lookups: int = 8,
    split: str = "train",
    digits: int = 10,
) -> int:
    """Writes `phonebook_documents` as JSON Lines, whole or not at all; returns the bytes of text.

    Raises:
        ValueError: see `phonebook_documents`.
    """
    size = 0
    rows = phonebook_documents(num_documents, seed, entries, num_lookups, split, digits)
    with written(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            size += len(row["text"].encode())
            file.write(json.dumps(row) + "\n")
    return size


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m synth.phonebook_documents`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m synth.phonebook_documents",
        description="Writes phone books as JSON Lines, a source for `gristmill curate`.",
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--documents", type=int, required=True, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the series")
    parser.add_argument(
        "--entries", type=int, nargs=2, default=(4, 32), metavar=("FEWEST", "MOST"), help="lines"
    )
    parser.add_argument("--lookups", type=int, default=8, help="look-ups behind each list")
    options = parser.parse_args(arguments)
    try:
        size = write_phonebook_documents(
            options.out, options.documents, options.seed, tuple(options.entries), options.lookups
        )
    except ValueError as error:
        parser.error(str(error))
    say(f"{options.out}: {options.documents:,} books, {size:,} bytes of text")
    return 0


if __name__ == "__main__":
    sys.exit(main())
