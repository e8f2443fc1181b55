"""The families that problems are taken from, by name."""

from synth.chain_sum import ChainSum
from synth.greatest_divisor import GreatestDivisor
from synth.problems import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (ChainSum(), GreatestDivisor())}


def find_family(name: str) -> Family:
    """Returns a family with its own bounds.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is unknown; families: {', '.join(FAMILIES)}")
    return FAMILIES[name]
