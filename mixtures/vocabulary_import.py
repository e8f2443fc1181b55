"""A vocabulary from the tokenizer of a released model, so that its training can be continued.

The files are copied as they are, and ids are those of the tokenizers library on that
tokenizer.json, special tokens spelt in a text being text. What other vocabularies are made to be is
checked here: that decoding gives back every byte, without which bits per byte count text that the
model never saw, and whether a long text may be encoded in pieces.
"""

import json
import shutil
from itertools import product
from pathlib import Path
from string import ascii_letters
from typing import Any

from tokenizers import Tokenizer

from mixtures.artifact import file_entry, fingerprint, finished, new_folder
from mixtures.tokenizer_json import TOKENIZER, imported_fingerprint, tokenizer_identity
from mixtures.vocabulary import CHAT_TEMPLATE_FILE, HF_FILES, IMPORTED, MANIFEST
from pipelines.dataset import write_json

CONFIG = "tokenizer_config.json"
_PROBES = (
    "The quick brown fox, 12345.67!",
    " leading and trailing  \t spaces \n\n",
    "\r\n\x00\x1f\u00a0\u2028\u3000",
    "Caf\u00e9 cafe\u0301 \ufb01 \u2460 \u212b \u1e9e I\u0307",  # what normalizers fold
    "\u4f60\u597d \u0e20\u0e32\u0e29\u0e32 \u0928\u092e\u0938\u094d\u0924\u0947 \u05e9\u05dc",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U00010348 \ue000 \ufffd",
    "def f(x):\n\treturn {'a': x**2}  # \\n",
)
"""Texts that a tokenizer with a normalizer, or with characters that it does not know, loses."""


def import_vocabulary(
    folder: str | Path, out: str | Path, end_of_document: str = ""
) -> dict[str, Any]:
    """Makes a vocabulary of a Hugging Face folder's tokenizer and returns its manifest.

    Args:
        folder: a Hugging Face folder with a tokenizer.json.
        out: folder to write; one that an equal request made is taken as it is.
        end_of_document: the token that ends every document; without it the `eos_token` of
            tokenizer_config.json. A chat model's may be the one that ends a turn.

    Raises:
        ValueError: there is no tokenizer.json, no such token, decoding does not give back every
            byte, or `out` holds something else.
    """
    folder, out = Path(folder), Path(out)
    source = folder / TOKENIZER
    if not source.is_file():
        raise ValueError(
            f"tokenizer import: {folder} has no {TOKENIZER}; wanted the folder of a Hugging Face "
            "model with one (transformers' save_pretrained of a fast tokenizer writes it)"
        )
    identity = tokenizer_identity(source)
    tokenizer = Tokenizer.from_file(str(source))
    config_path = folder / CONFIG
    config = json.loads(config_path.read_text("utf-8")) if config_path.is_file() else {}
    special = _special_ids(folder, tokenizer, config, end_of_document)
    request = {
        "kind": IMPORTED,
        "tokenizer": identity,
        "end_of_document": special["eos"],
        "files": fingerprint([file_entry(folder, path) for path in _files(folder)]),
        "version": 1,
    }
    if there := finished(out / MANIFEST, "vocabulary", request):
        return there
    _check_lossless(folder, tokenizer)
    with new_folder(out) as made:
        for path in _files(folder):
            shutil.copyfile(path, made / path.name)
        added = tokenizer.get_added_tokens_decoder()
        manifest = {
            "request": request,
            "kind": IMPORTED,
            "size": max(tokenizer.get_vocab().values()) + 1,
            "special_tokens": {t.content: i for i, t in sorted(added.items()) if t.special},
            "special_ids": special,
            "cut_at_spaces": cuts_at_spaces(tokenizer),
            "files": [file_entry(made, path) for path in _files(made)],
            "fingerprint": imported_fingerprint(source, special["eos"]),
        }
        write_json(made / MANIFEST, manifest)
        return manifest


def cuts_at_spaces(tokenizer: Tokenizer) -> bool:
    """Says whether a text may be cut before a space between two letters without changing an id.

    It may if nothing changes the text before it is split, a word begins at every such space, and
    no added token has one inside.
    """
    splitter = tokenizer.pre_tokenizer
    if splitter is None or tokenizer.normalizer is not None:
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    if any(" " in token.content for token in added if not token.special):
        return False
    for left, right in product(ascii_letters, repeat=2):
        whole, start = f"{left}{left} {right}{right}", 2
        parts = splitter.pre_tokenize_str(whole)
        if start not in [begin for _, (begin, _) in parts]:
            return False
        halves = [splitter.pre_tokenize_str(half) for half in (whole[:start], whole[start:])]
        if [piece for piece, _ in parts] != [piece for half in halves for piece, _ in half]:
            return False  # it puts something in front of a text
    return True


def _special_ids(
    folder: Path, tokenizer: Tokenizer, config: dict[str, Any], end_of_document: str
) -> dict[str, Any]:
    """Returns ids of bos, eos, pad and of what ends a generated text."""
    named = {
        name: _token_id(tokenizer, _content(config.get(f"{name}_token")))
        for name in ("bos", "eos", "pad")
    }
    eos = _token_id(tokenizer, end_of_document) if end_of_document else named["eos"]
    if eos is None:
        asked = end_of_document or f"the eos_token of {CONFIG}"
        special = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        raise ValueError(
            f"tokenizer import: {folder} has no token {asked!r}, which is to end every document. "
            f"Name one with --end-of-document; special tokens here: {', '.join(special[:16])}"
        )
    stops = list(dict.fromkeys(i for i in (eos, named["eos"]) if i is not None))
    bos, pad = (eos if named[name] is None else named[name] for name in ("bos", "pad"))
    return {"bos": bos, "eos": eos, "pad": pad, "stops": stops}


def _content(token: Any) -> str | None:
    """Returns the text of a token, which older files write as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _token_id(tokenizer: Tokenizer, token: str | None) -> int | None:
    return None if token is None else tokenizer.token_to_id(token)


def _files(folder: Path) -> list[Path]:
    """Returns what there is of the files that transformers and vLLM load, in a fixed order."""
    names = (*HF_FILES, CHAT_TEMPLATE_FILE)
    return [folder / name for name in names if (folder / name).is_file()]


def _check_lossless(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises ValueError unless decoding gives back what was encoded."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text in _PROBES:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if decoded != text:
            raise ValueError(
                f"tokenizer import: {folder} does not give back every byte: {text!r} is decoded "
                f"as {decoded!r}, so bits per byte would count text that the model never sees. "
                "Wanted a byte-level or byte-fallback tokenizer without a normalizer"
            )
