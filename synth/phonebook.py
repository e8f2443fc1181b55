"""Phone books: lists of "name: number" with look-ups, the plainest test of recall from a context.

A book is a pure function of split, seed and index. A full name (first and last) belongs to one
split by a keyed hash of itself, whatever the seed: no name of a held-out book, so no line of one,
stands in any training book. First names, last names and digits alone are shared, so every token of
a held-out book was trained on.

Source: the task is that of Jelassi et al. 2024, Repeat after me, arXiv:2402.01032, section 4.2 (a
list, two solved look-ups, a third to solve), and of Waleffe et al. 2024, arXiv:2406.07887.
"""

from dataclasses import dataclass
from functools import cache
from random import Random

from synth.problems import keyed

SPLITS = ("train", "heldout")
HELDOUT_SHARE = 0.25
"""Of all 30,870 full names."""

_FIRST = """
Aaron Adam Alan Albert Alice Amanda Amy Andrea Andrew Angela Ann Anna Anthony Arthur Barbara
Benjamin Betty Beverly Brandon Brenda Brian Bruce Bryan Carl Carol Catherine Charles Charlotte
Christina Christine Cynthia Daniel David Deborah Debra Denise Dennis Diana Diane Donald Donna
Doris Dorothy Douglas Dylan Edward Elizabeth Emily Emma Eric Ethan Eugene Evelyn Frances Frank
Gabriel Gary George Gerald Gloria Grace Gregory Hannah Harold Heather Helen Henry Isabella Jack
Jacob Jacqueline James Janet Janice Jason Jean Jeffrey Jennifer Jeremy Jerry Jessica Joan Joe
John Jonathan Jordan Jose Joseph Joyce Juan Judith Judy Julia Julie Justin Karen Katherine
Kathleen Keith Kelly Kenneth Kevin Kimberly Larry Laura Lauren Lawrence Linda Lisa Logan Louis
Madison Margaret Maria Marie Marilyn Mark Martha Mary Megan Melissa Michael Michelle Nancy
Natalie Nathan
"""

_LAST = """
Adams Alexander Allen Alvarez Anderson Andrews Armstrong Arnold Austin Bailey Baker Banks Barnes
Barrett Bates Beck Bell Bennett Berry Bishop Black Bowman Boyd Bradley Brewer Brooks Brown Bryant
Burke Burns Burton Bush Butler Byrd Caldwell Campbell Carlson Carpenter Carr Carroll Carter
Castillo Castro Chambers Chapman Chavez Clark Cole Coleman Collins Contreras Cook Cooper Cox
Craig Crawford Cruz Cunningham Curtis Daniels Davidson Davis Dawson Day Dean Delgado Diaz Dixon
Douglas Duncan Dunn Edwards Elliott Ellis Evans Ferguson Fernandez Fields Fisher Fleming Fletcher
Flores Ford Foster Fowler Fox Franklin Frazier Freeman Fuller Garcia Gardner Garrett Garza George
Gibson Gilbert Gomez Gonzalez Gordon Graham Grant Graves Gray Green Greene Gregory Griffin
Gutierrez Hale Hall Hamilton Hansen Hanson Harper Harris Harrison Hart Harvey Hawkins Hayes
Henderson Henry Hernandez Herrera Hicks Hill Hoffman Holland Holmes Holt Hopkins Horton Howard
Howell Hudson Hughes Hunt Hunter Jackson Jacobs James Jenkins Jennings Jensen Jimenez Johnson
Johnston Jones Jordan Kelley Kelly Kennedy Kim King Knight Lambert Lane Larson Lawrence Lawson
Lee Lewis Little Long Lopez Lowe Lucas Lynch Marshall Martin Martinez Mason Matthews May McCoy
McDonald Medina Mendoza Meyer Miles Miller Mills Mitchell Montgomery Moore Morales Moreno Morgan
Morris Morrison Murphy Murray Myers Neal Nelson Newman Nguyen Nichols Obrien Oliver Olson Ortiz
Owens Palmer Parker Patterson Payne Pearson Perez Perkins Perry Peters Peterson Phillips Pierce
Porter Powell Price Ramirez Ramos Reed Reid Reyes Reynolds Rhodes Rice Richards Richardson Riley
Rivera Roberts Robertson Robinson Rodriguez Rogers Romero Rose Ross Ruiz Russell Ryan Sanchez
Sanders Santiago
"""

FIRST_NAMES = tuple(_FIRST.split())
LAST_NAMES = tuple(_LAST.split())


@dataclass(frozen=True)
class Book:
    """A list of names with numbers, and which of them are looked up."""

    names: tuple[str, ...]
    numbers: tuple[str, ...]
    asked: tuple[int, ...]
    """Places in the list, in the order of the look-ups; none twice."""

    def line(self, place: int) -> str:
        """Returns a line of the list, which a look-up repeats."""
        return f"{self.names[place]}:{self.answer(place)}\n"

    def answer(self, place: int) -> str:
        """Returns what follows the colon: a space and the number."""
        return f" {self.numbers[place]}"

    def text(self) -> str:
        """Returns the list, an empty line and all look-ups: a training document."""
        return self._listed() + "".join(map(self.line, self.asked)).rstrip("\n")

    def prompt(self) -> str:
        """Returns the text up to the colon of the last look-up."""
        *solved, last = self.asked
        return self._listed() + "".join(map(self.line, solved)) + f"{self.names[last]}:"

    def _listed(self) -> str:
        return "".join(map(self.line, range(len(self.names)))) + "\n"


@cache
def full_names(split: str) -> tuple[str, ...]:
    """Returns the names of a split; every name is of one.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"phonebook: split is {split!r}; wanted one of: {', '.join(SPLITS)}")
    names = (f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES)
    return tuple(name for name in names if split_of(name) == split)


def split_of(name: str) -> str:
    """Returns the split that a full name belongs to."""
    held_out = keyed("phonebook name", name) < HELDOUT_SHARE * 2**62
    return "heldout" if held_out else "train"


def make_book(
    seed: int, index: int, num_entries: int, num_lookups: int, split: str, digits: int = 10
) -> Book:
    """Returns the book of a seed and an index.

    Args:
        seed: of a series of books.
        index: of the book in its series.
        num_entries: lines of the list.
        num_lookups: names that are looked up, at most all.
        split: "train" or "heldout".
        digits: of a number; the last four and then each three stand apart ("609-323-7777").

    Raises:
        ValueError: a number is below one, or the split has not as many names.
    """
    names = full_names(split)
    if not 1 <= num_entries <= len(names):
        raise ValueError(
            f"phonebook: num_entries is {num_entries}; wanted 1 to {len(names):,}, the names of "
            f"split {split!r}"
        )
    if num_lookups < 1 or digits < 1:
        raise ValueError(
            f"phonebook: num_lookups is {num_lookups} and digits is {digits}; wanted 1 or more"
        )
    random = Random(keyed("phonebook", split, seed, index, num_entries, num_lookups, digits))
    chosen = random.sample(names, num_entries)
    numbers = [_number(random.randrange(10**digits), digits) for _ in chosen]
    asked = random.sample(range(num_entries), min(num_lookups, num_entries))
    return Book(tuple(chosen), tuple(numbers), tuple(asked))


def _number(value: int, digits: int) -> str:
    """Returns a number of so many digits, grouped as telephone numbers are."""
    text = f"{value:0{digits}d}"
    head, tail = text[:-4], text[-4:]
    first = len(head) % 3
    groups = [head[:first], *(head[i : i + 3] for i in range(first, len(head), 3)), tail]
    return "-".join(group for group in groups if group)
