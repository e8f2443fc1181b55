"""datatrove's signatures and pairs, against datatrove itself."""

import gzip
import json
import struct
from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import simplify_text
from datatrove.utils.word_tokenizers import load_word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup.datatrove_signature import DatatroveMinHash, words_of
from pipelines.dedup.minhash import Shingles
from pipelines.dedup.presets import fineweb

HERE = Path(__file__)
DATA = HERE.parents[4] / "shared" / "data"
LICENCES = DATA / "licences" / "licences.jsonl.gz"
LANGUAGES = DATA / "languages" / "sentences.jsonl.gz"
ODD = [
    "",
    " ",
    "...",
    "one two three four",
    "one two three four five",
    "ONE two, three! four; five (six)",
    "It cost $1,234.56 on 2021-02-03, 12\u066b5 \u0663 \u00bd \u2468 at 5pm, don't you know?",
    "Cafe\u0301 caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \ufb01ne \u0130stanbul stra\u00dfe more",
    "\u65e5\u672c\u8a9e\u306e\u6587\u3067\u3059\u3002 \u4eca \u306f \u3044 \u5929 \u3067",
    "\u0627\u0644\u0639\u064e\u0631\u064e \u0644\u063a\u0629 \u062c\u0645 \u062c \u0635 \u064a",
    "\u0e20\u0e32\u0e29\u0e32 is_alpha IS_ALPHA http://x.example/y me@x.org \U0001f600 :-) km/h",
    "x \u0301 y\u00a0z\u2003w \x1c v\x00u t",
    "word " * 200,
    "a" * 5_000 + " b c d e",
]


def lines(path: Path, start: int, stop: int, step: int = 1) -> list[str]:
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in islice(stream, start, stop, step)]


def real_texts() -> list[str]:
    root = HERE.parents[3]
    own = [(root / name).read_text("utf-8") for name in ("README.md", "LICENSE", "pyproject.toml")]
    licences = [text[:20_000] for text in lines(LICENCES, 0, 2_000, 200)]
    sentences = lines(LANGUAGES, 0, None, 40)
    return [*own, *licences, *(" ".join(sentences[i : i + 20]) for i in range(0, 600, 20))]


def peer(folder: Path, function: str = "xxhash", bits: int = 64) -> MinhashDedupSignature:
    config = MinhashConfig(hash_config=HashConfig(hash_fc=function, precision=bits))
    return MinhashDedupSignature(str(folder), config)


@pytest.mark.parametrize(
    ("function", "bits", "texts"),
    [("xxhash", 64, real_texts()), ("sha1", 64, ODD), ("sha1", 32, ODD), ("xxhash", 32, ODD)],
)
def test_signatures_are_datatroves(tmp_path, function, bits, texts):
    own = peer(tmp_path, function, bits)
    step = DatatroveMinHash(hash_function=function, hash_bits=bits)
    values, signed = step.signatures(pa.array([*texts, None], pa.string()))
    assert values.shape == (len(texts) + 1, 112)
    for text, found, has in zip(texts, values, signed, strict=False):
        shingles = own.get_shingles(text)
        assert has == bool(shingles.size), text
        if has:
            wanted = [value for bucket in own.get_signature(shingles) for value in bucket]
            assert found.tolist() == wanted, text
    assert not signed[-1]
    assert signed.any()


WORDS = st.sampled_from(
    ["cannot", "dont", "id", "u.s.", "10km", "a\u0301", "\u2019s", "mr", "(x)", "it\u2019s", "e.g"]
)


@given(st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=20).map(" ".join))
@settings(max_examples=150, deadline=None)
def test_words_between_spaces_are_the_words_of_the_text(text):
    simplified = simplify_text(text)
    assert words_of(simplified, "eng") == load_word_tokenizer("eng").word_tokenize(simplified)


@pytest.mark.parametrize("language", ["eng", "deu", "spa", "rus"])
def test_special_cases_are_split_as_they_are_in_a_text(language):
    """Some of Spanish and Russian have a space inside, so their texts are split as a whole."""
    own = load_word_tokenizer(language)
    cases = " ".join(own.tokenizer.tokenizer.rules)
    assert words_of(cases, language) == own.word_tokenize(cases)


def groups(pairs: list[tuple[int, int]]) -> set[frozenset[int]]:
    """Returns the components of pairs."""
    of: dict[int, set[int]] = {}
    for a, b in pairs:
        joined = of.get(a, {a}) | of.get(b, {b})
        of |= dict.fromkeys(joined, joined)
    return {frozenset(group) for group in of.values()}


def peer_groups(folder: Path, texts: list[str], config: MinhashConfig) -> list[set[frozenset[int]]]:
    """Returns the documents that datatrove's first two stages find alike, bucket by bucket."""
    documents = (Document(text, str(i)) for i, text in enumerate(texts))
    MinhashDedupSignature(str(folder / "signatures"), config).run(documents)
    found = []
    for bucket in range(config.num_buckets):
        stage = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "dups"), config=config)
        stage.run(rank=bucket, world_size=config.num_buckets)
        data = (folder / "dups" / f"{bucket:05d}_00.dups").read_bytes()
        found.append(groups([(b, d) for _, b, _, d in struct.iter_unpack("<4I", data)]))
    return found


def band_groups(bands: np.ndarray, sizes: np.ndarray) -> list[set[frozenset[int]]]:
    """Returns the documents that share a hash, band by band."""
    found = []
    for band in bands.T:
        shared: dict[int, list[int]] = defaultdict(list)
        for row in np.flatnonzero(sizes):
            shared[int(band[row])].append(int(row))
        found.append({frozenset(rows) for rows in shared.values() if len(rows) > 1})
    return found


def test_candidates_are_those_of_datatroves_buckets(tmp_path):
    words = (HERE.parents[3] / "LICENSE").read_text("utf-8").split()
    texts = [" ".join(words[: 300 - i]) for i in range(0, 60, 3)]  # near-duplicates of each other
    texts += [*ODD, *ODD[5:9], *lines(LICENCES, 0, 90)]
    texts += [text + " The end." for text in texts[-90:-70]]
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1", precision=64))
    wanted = peer_groups(tmp_path, texts, config)
    step = fineweb()
    found = band_groups(*step.signature.bands(pa.array(texts), step.shingles))
    assert found == wanted
    assert len({frozenset(groups_of) for groups_of in found}) > 3  # buckets differ


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_bands": 0},
        {"num_rows": 0},
        {"num_words": 0},
        {"hash_bits": 16},
        {"hash_function": "md5"},
    ],
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"DatatroveMinHash: {next(iter(wrong))} is .*wanted"):
        DatatroveMinHash(**wrong)


def test_unknown_language_is_refused():
    with pytest.raises(ValueError, match="'xx-none' doesn't have a tokenizer"):
        DatatroveMinHash(language="xx-none").bands(pa.array(["a b c d e f"]), Shingles())
