"""The identity of a tokenizer.json: what decides ids, whoever saved it and however it is laid out.

It needs no tokenizer library, so a machine that only trains can tell whether a model and a mixture
mean the same by an id.
"""

import json
from pathlib import Path
from typing import Any

from mixtures.artifact import fingerprint

TOKENIZER = "tokenizer.json"

# Of no consequence to the ids of a text: what is cut or filled up to a length, and the special
# tokens that are put around a text, which `Vocabulary` never asks for.
_BESIDE_THE_POINT = ("version", "truncation", "padding", "post_processor")


def tokenizer_identity(path: Path) -> str:
    """Returns the SHA-256 of what a tokenizer.json says about the ids of a text.

    Raises:
        ValueError: the file is no tokenizer.json.
    """
    try:
        content = json.loads(path.read_bytes())
        model = content["model"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no tokenizer.json: {type(error).__name__} {error}. Copy it again from "
            "where the model was published"
        ) from error
    if "merges" in model:
        model["merges"] = [_pair(merge) for merge in model["merges"]]
    decides = {name: value for name, value in content.items() if name not in _BESIDE_THE_POINT}
    return fingerprint(decides)


def imported_fingerprint(path: Path, end_of_document: int) -> str:
    """Returns the fingerprint that `tokenizer import` gives a vocabulary.

    Args:
        path: a tokenizer.json.
        end_of_document: id of the token that ends every document.
    """
    return fingerprint({"tokenizer": tokenizer_identity(path), "end_of_document": end_of_document})


def _pair(merge: Any) -> list[str]:
    """Returns a merge in the newer of its two forms: "a b" is ["a", "b"]."""
    return merge.split(" ") if isinstance(merge, str) else merge
