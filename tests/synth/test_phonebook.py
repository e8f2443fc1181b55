import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.phonebook import FIRST_NAMES, LAST_NAMES, SPLITS, full_names, make_book
from synth.phonebook_documents import main, phonebook_documents, write_phonebook_documents

LINE = re.compile(r"([A-Z][A-Za-z]+ [A-Z][A-Za-z]+): (\d{3}-\d{3}-\d{4})")


def test_every_full_name_is_of_one_split():
    names = [name for split in SPLITS for name in full_names(split)]
    assert len(names) == len(set(names)) == len(FIRST_NAMES) * len(LAST_NAMES)
    assert 0.24 < len(full_names("heldout")) / len(names) < 0.26


@given(
    seed=st.integers(0, 2**40),
    index=st.integers(0, 2**40),
    entries=st.integers(1, 60),
    lookups=st.integers(1, 70),
    split=st.sampled_from(SPLITS),
)
def test_a_book_is_a_function_of_its_index_and_asks_what_it_lists(
    seed, index, entries, lookups, split
):
    book = make_book(seed, index, entries, lookups, split)
    assert book == make_book(seed, index, entries, lookups, split)
    assert len(set(book.names)) == len(book.numbers) == entries
    assert set(book.names) <= set(full_names(split))
    assert len(set(book.asked)) == len(book.asked) == min(entries, lookups)
    listed, asked = book.text().split("\n\n")
    lines = listed.split("\n")
    assert [LINE.fullmatch(line).groups() for line in lines] == list(
        zip(book.names, book.numbers, strict=True)
    )
    assert asked.split("\n") == [lines[place] for place in book.asked]
    assert book.prompt() + book.answer(book.asked[-1]) == book.text()


def test_other_seeds_and_indices_give_other_books():
    books = {make_book(seed, index, 4, 2, "train") for seed in range(20) for index in range(20)}
    assert len(books) == 400


@pytest.mark.parametrize(
    ("digits", "pattern"),
    [
        (1, r"\d"),
        (4, r"\d{4}"),
        (5, r"\d-\d{4}"),
        (7, r"\d{3}-\d{4}"),
        (12, r"\d\d(-\d{3}){2}-\d{4}"),
    ],
)
def test_numbers_are_grouped_from_the_right(digits, pattern):
    for number in make_book(0, 0, 50, 1, "train", digits).numbers:
        assert re.fullmatch(pattern, number)


def test_places_of_the_asked_are_spread_over_the_list():
    places = [make_book(1, index, 10, 1, "heldout").asked[0] for index in range(1_000)]
    assert all(60 < places.count(place) < 140 for place in range(10))


def test_no_line_of_a_held_out_book_can_stand_in_a_document():
    held_out = set(full_names("heldout"))
    for seed in (0, 7):
        for row in phonebook_documents(150, seed, (4, 40), split="train"):
            names = {match[1] for match in LINE.finditer(row["text"])}
            assert len(names) == row["entries"]
            assert not names & held_out


def test_documents_have_lists_of_every_length_and_their_look_ups():
    rows = list(phonebook_documents(400, 3, (3, 9), num_lookups=5))
    assert {row["entries"] for row in rows} == set(range(3, 10))
    assert len({row["id"] for row in rows}) == 400
    for row in rows:
        assert row["lookups"] == min(5, row["entries"])
        assert row["text"].count(":") == row["entries"] + row["lookups"]


def test_documents_are_written_with_the_same_bytes_twice(tmp_path):
    size = write_phonebook_documents(tmp_path / "a" / "books.jsonl", 50, 1)
    arguments = ["--documents", "50", "--seed", "1", "--entries", "4", "32"]
    assert main(["--out", str(tmp_path / "b.jsonl"), *arguments]) == 0
    data = (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a" / "books.jsonl").read_bytes() == data
    rows = [json.loads(line) for line in data.splitlines()]
    assert rows == list(phonebook_documents(50, 1))
    assert size == sum(len(row["text"]) for row in rows)


def test_wrong_numbers_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="split is 'test'; wanted one of: train, heldout"):
        full_names("test")
    with pytest.raises(ValueError, match=r"num_entries is 9000; wanted 1 to 7,\d{3}, the names of"):
        make_book(0, 0, 9_000, 1, "heldout")
    with pytest.raises(ValueError, match="num_lookups is 0 and digits is 10"):
        make_book(0, 0, 2, 0, "heldout")
    with pytest.raises(ValueError, match="5 documents of 4 to 3 entries"):
        list(phonebook_documents(5, 0, (4, 3)))
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "x"), "--documents", "0"])
    assert "0 documents of 4 to 32 entries are wanted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
