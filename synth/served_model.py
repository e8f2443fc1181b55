"""Which model a server serves: its name carries the hash of the folder it was loaded from.

A name alone says nothing about weights. Ours is `folder@revision`, and a server answers a request
for another name with 404, so no answer can come from weights that were exchanged in between.
"""

import hashlib
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBE = "probe.json"
REVISION_DIGITS = 64
TIMEOUT_S = 120.0

# no proxy of the environment stands between us and a server of our own
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class ServedModel:
    """A server and the one model that it serves."""

    url: str
    """Without a path, such as http://127.0.0.1:8101."""
    name: str

    @property
    def revision(self) -> str:
        """The sha256 that `model_revision` gave for the folder."""
        return self.name.rpartition("@")[2]


def model_revision(folder: Path) -> str:
    """Returns a sha256 over the names and contents of a Hugging Face folder's files.

    probe.json is left out: it changes no answer.

    Raises:
        ValueError: the folder has no config.json.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"model_revision: {folder} has no config.json; "
            f"wanted the folder that `gristmill export` wrote"
        )
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != PROBE:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\n{content}\n".encode())
    return digest.hexdigest()


def served_name(folder: Path) -> str:
    """Returns the name under which a folder is served."""
    return f"{folder.resolve().name}@{model_revision(folder)}"


def find_model(url: str) -> ServedModel:
    """Asks a server what it serves.

    Raises:
        ValueError: its model's name carries no revision, so answers could not be told apart.
        OSError: the server does not answer.
    """
    url = url.rstrip("/").removesuffix("/v1")
    try:
        names = [model["id"] for model in call(url, "/v1/models")["data"]]
    except urllib.error.URLError as error:
        raise OSError(
            f"no server answers at {url}: {error.reason}. Start one with `gristmill serve HF_DIR`, "
            f"or give the folder itself"
        ) from error
    for name in names:
        revision = name.rpartition("@")[2]
        if len(revision) == REVISION_DIGITS and set(revision) <= set("0123456789abcdef"):
            return ServedModel(url, name)
    raise ValueError(
        f"{url} serves {', '.join(names) or 'nothing'}; wanted a name that ends with @ and the "
        f"sha256 of the model. `gristmill serve HF_DIR` starts such a server."
    )


def call(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Sends one control request and returns the JSON of the answer; null where it has none.

    Raises:
        RuntimeError: the server refused it; its words are in the text.
        OSError: the server does not answer.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}{path}", data, headers)
    try:
        with _opener.open(request, timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")[:1_000]
        raise RuntimeError(f"{url}{path} answered {error.code}: {text}") from None
