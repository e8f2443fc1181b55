"""The signatures of datatrove's MinHash deduplication, value for value.

A text is lower-cased, its numbers become 0, its punctuation spaces, its marks go; spaCy splits it
into words; a shingle is n words with a space between them. datatrove's own functions do all that
and hash the shingles, so what they do in an odd case is done here, too. spaCy takes most of the
time: 1.2 MB/s here against 0.3 MB/s in datatrove, as what stands between spaces is looked up in a
cache.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipelines.dedup.minhash import Shingles
from pipelines.dedup.peer_bands import MERSENNE, banded, check_counts, minima

try:
    from datatrove.utils.hashing import HashConfig, create_hash_func
    from datatrove.utils.text import simplify_text
    from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer
except ImportError as error:
    raise ImportError(
        "datatrove is not installed, and DatatroveMinHash calls its functions; "
        'install it with: pip install "gristmill[datatrove]"'
    ) from error

HASH_FUNCTIONS = ("xxhash", "sha1")
HASH_BITS = (32, 64)
CACHED_WORDS = 1 << 17
CACHED_CHARACTERS = 32
"""Longer runs without a space are not remembered."""


@dataclass(frozen=True)
class DatatroveMinHash:
    """Bands of datatrove's MinhashDedupSignature; a text of fewer words than a shingle has none.

    Two documents share a band exactly if MinhashDedupBuckets pairs them in that bucket (of more
    than two with equal bands it writes a chain). Tested against datatrove 0.10.1, all values.

    Raises:
        ValueError: a parameter is out of its range; at the first text, no tokenizer is known for
            the language.

    Source: github.com/huggingface/datatrove, pipeline/dedup/minhash.py (get_shingles,
        get_signature) and utils/text.py (simplify_text).
    """

    num_bands: int = 14
    num_rows: int = 8
    num_words: int = 5
    """Words in a shingle."""
    hash_function: str = "xxhash"
    """"xxhash", datatrove's default, or "sha1"."""
    hash_bits: int = 64
    seed: int = 1
    language: str = "eng"
    """Of the tokenizer, as datatrove names it."""

    libraries: ClassVar[tuple[str, ...]] = ("datatrove", "spacy")

    def __post_init__(self) -> None:
        counts = {"num_bands": self.num_bands, "num_rows": self.num_rows}
        check_counts("DatatroveMinHash", **counts, num_words=self.num_words)
        if self.hash_function not in HASH_FUNCTIONS:
            raise ValueError(
                f"DatatroveMinHash: hash_function is {self.hash_function!r}; wanted one of: "
                f"{', '.join(HASH_FUNCTIONS)}"
            )
        if self.hash_bits not in HASH_BITS:
            raise ValueError(f"DatatroveMinHash: hash_bits is {self.hash_bits}; wanted 32 or 64")

    def bands(self, text: pa.StringArray, shingles: Shingles) -> tuple[np.ndarray, np.ndarray]:
        """Returns the hashes of the bands and bounds of the sizes; `shingles` is not looked at."""
        values, signed = self.signatures(text)
        return banded(text, values, signed, self.num_rows)

    def signatures(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Returns uint64 (n, num_bands * num_rows), and bool (n,): which texts have one."""
        precision = 32 if self.hash_bits == 32 else 64
        name = "sha1" if self.hash_function == "sha1" else "xxhash"
        hash_function: Any = create_hash_func(HashConfig(precision, name))
        stops, hashes = np.empty(len(text), np.int64), []
        for row, value in enumerate(text.to_pylist()):
            words = words_of(simplify_text(value), self.language) if value else []
            for first in range(len(words) - self.num_words + 1):
                hashes.append(hash_function(" ".join(words[first : first + self.num_words])))
            stops[row] = len(hashes)
        values = minima(stops, np.array(hashes, np.uint64), *self._numbers(), self.hash_bits)
        return values, np.diff(stops, prepend=0) > 0

    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns multipliers and additions: numpy's legacy generator, all of one, then others."""
        rng = np.random.RandomState(self.seed)
        count = self.num_bands * self.num_rows
        multipliers = rng.randint(1, MERSENNE, dtype=np.uint64, size=count)
        return multipliers, rng.randint(0, MERSENNE, dtype=np.uint64, size=count)


def words_of(simplified: str, language: str) -> list[str]:
    """Returns the words of a simplified text as datatrove's tokenizer of a language splits it."""
    tokenizer, apart = _tokenizer(language)
    if not apart:
        return tokenizer.word_tokenize(simplified)
    words: list[str] = []
    for part in simplified.split(" "):
        if len(part) > CACHED_CHARACTERS:
            words += tokenizer.word_tokenize(part)
        else:
            words += _remembered(part, language)
    return words


@cache
def _tokenizer(language: str) -> tuple[WordTokenizer, bool]:
    """Returns the tokenizer and whether it splits what stands between spaces by itself.

    spaCy's tokenizer of rules does, unless one of its special cases has a space inside.
    """
    tokenizer = load_word_tokenizer(language)
    rules = getattr(getattr(tokenizer, "tokenizer", None), "tokenizer", None)
    rules = getattr(rules, "rules", None)
    return tokenizer, rules is not None and not any(" " in rule.strip() for rule in rules)


@lru_cache(CACHED_WORDS)
def _remembered(part: str, language: str) -> tuple[str, ...]:
    return tuple(_tokenizer(language)[0].word_tokenize(part))
