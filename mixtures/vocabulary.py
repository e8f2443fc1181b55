"""A vocabulary: a folder with a tokenizer.json that Hugging Face loads, and how we encode with it.

Documents are encoded so that decoding gives back every byte (bits per byte need that), and text
that spells a special token stays text: "<s>" on a page is not id 1. A SentencePiece model is run by
its own library, 2 to 7 times faster than tokenizers with equal ids; byte-level BPE by tokenizers.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from mixtures.artifact import read_manifest
from mixtures.chat_template import CHAT_TEMPLATE
from mixtures.sentencepiece_json import is_reserved
from mixtures.sentencepiece_model import SCORE_GRID
from mixtures.special_tokens import SpecialIds
from mixtures.tokenizer_json import TOKENIZER

MANIFEST = "vocabulary.json"
MODEL = "tokenizer.model"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
HF_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")
IMPORTED = "imported"
"""The kind of a vocabulary that `mixtures.vocabulary_import` made."""

UINT16_SIZE = 1 << 16
"""Largest vocabulary whose ids are stored in two bytes."""

PIECE_CHARACTERS = 1 << 18
"""Longer texts are encoded in pieces: a character takes 40 to 180 bytes while it is encoded."""
# A space between two letters begins a word in every pre-tokenizer of ours, so no id changes there;
# of an imported vocabulary it is found out (`mixtures.vocabulary_import.cuts_at_spaces`).
_WORD_BORDER = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")


class Vocabulary:
    """A loaded vocabulary. Use `load_vocabulary`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.size: int = manifest["size"]
        self.fingerprint: str = manifest["fingerprint"]
        self.tokenizer = Tokenizer.from_file(str(path / TOKENIZER))
        self.tokenizer.encode_special_tokens = True  # special tokens in a text are text
        self.tokenizer.no_truncation()  # a released one may bring a length of its own
        self.tokenizer.no_padding()
        special = manifest.get("special_ids", {})
        stops = {"stops": tuple(special["stops"])} if special else {}
        self.special_ids = SpecialIds(**{**special, **stops})
        self._cut = manifest.get("cut_at_spaces", True)
        self._model: SentencePieceProcessor | None = None
        self._run_characters = PIECE_CHARACTERS
        if (path / MODEL).exists():
            self._model = SentencePieceProcessor(model_file=str(path / MODEL))
            if manifest["request"]["model_type"] == "unigram":
                self._run_characters = _exact_characters(self._model)

    @property
    def eos_id(self) -> int:
        """The id that ends every document."""
        return self.special_ids.eos

    @property
    def dtype(self) -> np.dtype:
        """The type of stored ids: uint16 up to 65,536 ids, else int32 (Megatron has no uint32)."""
        return np.dtype(np.uint16 if self.size <= UINT16_SIZE else np.int32)

    @property
    def end_of_document(self) -> bytes:
        """The stored form of the token that ends every document."""
        return np.array(self.eos_id, self.dtype).tobytes()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, without any special token, in the stored type."""
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for group in _groups((i, piece) for i, t in enumerate(texts) for piece in self._pieces(t)):
            encoded = self._encode([piece for _, piece in group])
            for (number, _), ids in zip(group, encoded, strict=True):
                parts[number].append(ids)
        return [found[0] if len(found) == 1 else np.concatenate(found) for found in parts]

    def _pieces(self, text: str) -> Iterator[str]:
        """Yields the text in pieces that are encoded apart without changing an id."""
        if not self._cut:
            yield text
            return
        for piece in _cut(text, PIECE_CHARACTERS):
            if self._model is None:
                yield piece
            else:  # no piece that we let it learn holds a line feed
                yield from _line_runs(piece, self._run_characters)

    def _encode(self, pieces: list[str]) -> list[np.ndarray]:
        if self._model is None:
            return self._encode_by_tokenizers(pieces)
        short = [piece for piece in pieces if len(piece) <= self._run_characters]
        # a line in which float32 sums may round is left to tokenizers, which adds in float64
        long = [piece for piece in pieces if len(piece) > self._run_characters]
        by_model = iter(self._model.encode(short, num_threads=1))
        by_tokenizers = iter(self._encode_by_tokenizers(long))
        return [
            np.array(next(by_model), self.dtype)
            if len(piece) <= self._run_characters
            else next(by_tokenizers)
            for piece in pieces
        ]

    def _encode_by_tokenizers(self, pieces: list[str]) -> list[np.ndarray]:
        found = self.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in found]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids; special tokens appear by name."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def write_hf(self, out: str | Path) -> None:
        """Writes what transformers and vLLM load into a Hugging Face folder.

        The chat template stands in a file of its own, as transformers 5 writes it. An imported
        vocabulary's files are those that it was made of.
        """
        if self.manifest["kind"] == IMPORTED:
            for entry in self.manifest["files"]:
                shutil.copyfile(self.path / entry["path"], os.path.join(out, entry["path"]))
            return
        for name in HF_FILES:
            shutil.copyfile(self.path / name, os.path.join(out, name))
        Path(out, CHAT_TEMPLATE_FILE).write_text(CHAT_TEMPLATE, "utf-8")


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Loads a vocabulary folder.

    Raises:
        ValueError: the folder is no finished vocabulary.
    """
    return Vocabulary(Path(path), read_manifest(Path(path) / MANIFEST, "vocabulary"))


def _exact_characters(model: SentencePieceProcessor) -> int:
    """Returns the length up to which float32 sums of grid scores are exact: below 2^24 / 64.

    SentencePiece gives a character that it does not know the lowest score less 10.
    """
    scores = [model.get_score(i) for i in range(model.vocab_size()) if not is_reserved(model, i)]
    return int(2**24 / SCORE_GRID / (10 - min(scores)))


def _groups(pieces: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Yields pieces in lists of at least PIECE_CHARACTERS together, but for the last."""
    group, characters = [], 0
    for number, piece in pieces:
        group.append((number, piece))
        characters += len(piece)
        if characters >= PIECE_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _cut(text: str, characters: int) -> Iterator[str]:
    """Yields the text in pieces of about `characters`, cut where no id changes.

    Where no such place comes for three times as long, as in one line of base64, the piece ends
    anywhere: the ids there may be others, but still decode to the same text.
    """
    start = 0
    while len(text) - start > characters:
        latest = start + 4 * characters
        border = _WORD_BORDER.search(text, start + characters, latest)
        end = border.start() if border else min(latest, len(text))
        yield text[start:end]
        start = end
    yield text[start:]


def _line_runs(text: str, characters: int) -> Iterator[str]:
    """Yields runs of whole lines of up to `characters`; a longer line comes alone."""
    start = 0
    while len(text) - start > characters:
        end = text.rfind("\n", start, start + characters) + 1
        if not end:
            end = text.find("\n", start + characters) + 1 or len(text)
        yield text[start:end]
        start = end
    yield text[start:]
