"""Publishes a curated dataset to the Hugging Face Hub: its files as they are, and a data card.

All of it goes in one commit, so the repository never holds a part of a dataset. What is there is
compared by sha256 first: publishing again changes nothing and says so, and a repository with
another dataset, or with a card that a person has edited, is left alone unless told otherwise. The
result is a dataset for `datasets.load_dataset`, by configuration, and for gristmill itself.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from flows.data_card import CONFIGS, make_card, survey
from pipelines.dataset import MANIFEST, Dataset
from pipelines.inputs import INPUTS
from pipelines.progress import human, progress, say

CARD = "README.md"
OTHERS = {CARD, ".gitattributes"}
"""What a repository may hold before anything was published to it."""
MAX_FILES = 25_000
"""The Hub's limit for one commit."""
CHUNK = 8 << 20
SEAL = "<!-- written by gristmill; sha256 of what stands above: {} -->\n"
REMEDIES = {
    401: "Log in again with `hf auth login`, or set HF_TOKEN to a valid token.",
    403: "Use a token with write access to this namespace.",
    404: "Check the name, and that the token may see the repository.",
    412: "Somebody else has committed meanwhile; publish again.",
}


@dataclass(frozen=True)
class File:
    """A file to publish, on disk or in memory."""

    path: str
    """In the repository."""
    content: Path | bytes
    size: int
    sha256: str


def publish(
    dataset: str | Path,
    repo: str,
    *,
    private: bool = True,
    licence: str = "",
    ledger: bool = True,
    dropped: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    endpoint: str = "",
    token: str = "",
) -> dict[str, Any]:
    """Publishes a curated dataset as namespace/name on the Hub and says what has changed there.

    Args:
        dataset: folder that curate wrote.
        repo: namespace/name; it is made if it does not exist.
        private: a new repository is private, and an existing public one is refused.
        licence: of the whole, SPDX or the Hub's identifier; without it the documents' own.
        ledger: publish the ledger too, as configuration `ledger`.
        dropped: publish the dropped documents too, as configuration `dropped`.
        replace: take the place of another dataset, or of a card that was edited by hand.
        dry_run: check everything and make the card, but ask nothing of the Hub.
        endpoint: address of the Hub; without it HF_ENDPOINT or huggingface.co.
        token: without it HF_TOKEN or the login of `hf auth login`.

    Returns:
        repo, url, private, documents, files, bytes, card (its text), changed, uploaded and deleted
        (numbers of files) and revision (the commit that holds the dataset; "" in a dry run).

    Raises:
        ValueError: the folder cannot be published, the repository must not be overwritten, or
            there is no token.
        RuntimeError: the Hub refused or did not answer. The repository is as it was.
        OSError: the Hub holds other bytes than were sent.
    """
    _check_name(repo)
    source = _publishable(Path(dataset))
    asked = {"data": True, "ledger": ledger, "dropped": dropped}
    kinds = [kind for kind, wanted in asked.items() if wanted and source.files(kind)]
    files = _checked_files(source, kinds)
    with progress("publish: counting", 0, "B") as bar:
        found = survey(source, kinds, bar.advance)
    card = sealed(make_card(source, repo, found, licence))
    manifest = public_manifest(source.manifest, [file.path for file in files])
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    files += [_in_memory(MANIFEST, text), _in_memory(CARD, card)]
    if len(files) > MAX_FILES:
        raise ValueError(
            f"publish: {dataset} has {len(files):,} files; the Hub takes {MAX_FILES:,} in one "
            f"commit. Leave out the ledger or the dropped documents."
        )
    api = HfApi(endpoint=endpoint or None, token=token or get_token())
    result = {
        "repo": repo,
        "url": f"{api.endpoint}/datasets/{repo}",
        "private": private,
        "documents": manifest["kept"],
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "card": card,
    }
    if dry_run:
        return result | {"changed": False, "uploaded": 0, "deleted": 0, "revision": ""}
    if not api.token:
        raise ValueError(
            f"publish: no token for {api.endpoint}. Set HF_TOKEN to one with write access to "
            f"{repo.partition('/')[0]}, or run `hf auth login`."
        )
    with _explained(repo, api.endpoint):
        return result | _push(api, repo, private, files, manifest, replace)


def sealed(card: str) -> str:
    """Returns the card with its own hash as the last line, so that an edit by hand shows."""
    return card + SEAL.format(hashlib.sha256(card.encode()).hexdigest())


def is_sealed(card: str) -> bool:
    """Says whether a card is as gristmill wrote it."""
    text, mark, _ = card.rpartition("<!-- written by gristmill;")
    return bool(mark) and sealed(text) == card


def public_manifest(manifest: Mapping[str, Any], published: Sequence[str]) -> dict[str, Any]:
    """Returns a manifest that names only published files and no place on this machine.

    Of a local root the last part stays; of an address all but user, password and query.
    """
    sources = [source | {"root": _public_root(source["root"])} for source in manifest["sources"]]
    files = [entry for entry in manifest["files"] if entry["path"] in set(published)]
    return {**manifest, "sources": sources, "files": files}


def _public_root(root: str) -> str:
    if "://" in root:
        parts = urlsplit(root)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return Path(root).name if root.startswith(("/", ".", "~")) else root


def _check_name(repo: str) -> None:
    validate_repo_id(repo)
    if repo.count("/") != 1:
        raise ValueError(f"publish: repo is {repo!r}; wanted namespace/name, for example me/web")


def _publishable(folder: Path) -> Dataset:
    """Returns the dataset in a folder; ValueError says what the folder is instead."""
    what = ""
    if (folder / "wheel.json").is_file():
        what = f"a run of the flywheel. Publish {folder / 'dataset'}"
    elif (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        what = "a model. Upload it with `hf upload`"
    elif (folder / "tokenizer.json").is_file() or (folder / "vocabulary.json").is_file():
        what = "a tokenizer. Upload it with `hf upload`"
    elif any(folder.glob("tokens-*.bin")):
        what = "a token dataset, of use only with its tokenizer. Publish what it was made of"
    if what:
        raise ValueError(f"publish: {folder} is {what}; publish takes the folder that curate wrote")
    dataset = Dataset(folder)
    if "recipe" not in dataset.manifest or not dataset.files("data"):
        raise ValueError(
            f"publish: the {MANIFEST} of {folder} is not that of a curated dataset; publish takes "
            f"the folder that curate wrote"
        )
    return dataset


def _checked_files(dataset: Dataset, kinds: Sequence[str]) -> list[File]:
    """Returns the files to publish; ValueError if one is not what the manifest says."""
    entries = [
        entry
        for entry in dataset.manifest["files"]
        if entry["path"] == INPUTS or entry["path"].partition("/")[0] in kinds
    ]
    files = []
    with progress("publish: checking", sum(entry["bytes"] for entry in entries), "B") as bar:
        for entry in entries:
            path = dataset.path / entry["path"]
            digest, size = hashlib.sha256(), 0
            if path.is_file():
                with path.open("rb") as stream:
                    while data := stream.read(CHUNK):
                        digest.update(data)
                        size += len(data)
                        bar.advance(len(data))
            if digest.hexdigest() != entry["sha256"]:
                raise ValueError(
                    f"publish: {path} is not the file that the manifest names ({size:,} bytes "
                    f"there, {entry['bytes']:,} wanted, or other bytes): it is damaged. Run the "
                    f"curate command again into another folder."
                )
            files.append(File(entry["path"], path, size, entry["sha256"]))
    return files


def _in_memory(path: str, text: str) -> File:
    data = text.encode()
    return File(path, data, len(data), hashlib.sha256(data).hexdigest())


def _push(
    api: HfApi,
    repo: str,
    private: bool,
    files: Sequence[File],
    manifest: Mapping[str, Any],
    replace: bool,
) -> dict[str, Any]:
    """Brings the repository to these files in one commit, if it is not there yet."""
    api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
    info = api.dataset_info(repo)
    if private and not info.private:
        raise ValueError(
            f"publish: {repo} is public, and it was asked for a private one. Ask for a public one, "
            f"or change the repository in its settings."
        )
    there = _tree(api, repo, info.sha)
    ours = {file.path for file in files}
    new = [file for file in files if not _equal(file, there.get(file.path))]
    gone = [path for path in there if _managed(path) and path not in ours]
    result = {"private": bool(info.private), "uploaded": len(new), "deleted": len(gone)}
    if not new and not gone:
        say(f"publish: {repo} holds this dataset already, with this card; nothing to do")
        return result | {"changed": False, "revision": info.sha}
    if not replace:
        _check_there(api, repo, info.sha, there, manifest)
    size = human(sum(file.size for file in new), "B")
    say(f"publish: {len(new)} files ({size}) to {repo}, {len(gone)} to be removed there")
    commit = api.create_commit(
        repo,
        [
            *(CommitOperationAdd(file.path, file.content) for file in new),
            *(CommitOperationDelete(path) for path in gone),
        ],
        commit_message=f"Publish {manifest['kept']:,} documents of {manifest['recipe']['name']}",
        repo_type="dataset",
        parent_commit=info.sha,
    )
    after = _tree(api, repo, commit.oid)
    wrong = [file.path for file in files if not _equal(file, after.get(file.path))]
    if wrong:
        raise OSError(
            f"publish: {api.endpoint} took the commit {commit.oid}, but holds other bytes of "
            f"{wrong[0]} and {len(wrong) - 1} other files. Publish again."
        )
    return result | {"changed": True, "revision": commit.oid}


def _tree(api: HfApi, repo: str, revision: str | None) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type="dataset")
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _managed(path: str) -> bool:
    """Says whether a file of the repository is one that only publish writes."""
    return path == INPUTS or path.partition("/")[0] in CONFIGS


def _equal(file: File, there: RepoFile | None) -> bool:
    """Compares by sha256 (LFS) or by git's sha1 of small files."""
    if there is None or there.size != file.size:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == file.sha256
    data = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _check_there(
    api: HfApi,
    repo: str,
    revision: str | None,
    there: Mapping[str, RepoFile],
    manifest: Mapping[str, Any],
) -> None:
    """Refuses to overwrite what is not this dataset, or a card with the work of a person in it."""
    remedy = "Publish under another name, or replace it (`--replace`)."
    if foreign := sorted(set(there) - OTHERS) if MANIFEST not in there else []:
        raise ValueError(
            f"publish: {repo} holds {len(foreign)} files that gristmill did not publish, for "
            f"example {foreign[0]}. {remedy}"
        )
    if MANIFEST in there:
        held = json.loads(_read(api, repo, revision, MANIFEST))
        if _documents(held) != _documents(manifest):
            name = held.get("recipe", {}).get("name", "no recipe")
            raise ValueError(
                f"publish: {repo} holds another dataset ({held.get('kept', 0):,} documents of "
                f"{name}); this one has {manifest['kept']:,} of {manifest['recipe']['name']}. "
                f"{remedy}"
            )
    if CARD in there:
        card = _read(api, repo, revision, CARD)
        body = re.sub(r"\A---\n.*?^---$", "", card, count=1, flags=re.DOTALL | re.MULTILINE)
        if body.strip() and not is_sealed(card):
            raise ValueError(
                f"publish: {CARD} of {repo} was edited by hand and would be overwritten. Keep what "
                f"you need of it and publish with `--replace`."
            )


def _documents(manifest: Mapping[str, Any]) -> list[Any]:
    """Returns what two manifests of the same documents have in common."""
    files = manifest.get("files", [])
    data = sorted(entry["sha256"] for entry in files if entry["path"].startswith("data/"))
    return [manifest.get("recipe", {}).get("fingerprint"), data]


def _read(api: HfApi, repo: str, revision: str | None, path: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        place = api.hf_hub_download(
            repo, path, repo_type="dataset", revision=revision, local_dir=folder
        )
        return Path(place).read_text("utf-8")


@contextmanager
def _explained(repo: str, endpoint: str) -> Iterator[None]:
    """Turns what the Hub's client raises into who, got, wanted and remedy."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or error.response.reason_phrase
        remedy = REMEDIES.get(status, "The repository is as it was; publish again to go on.")
        raise RuntimeError(
            f"publish: {endpoint} answered {status} for {repo}: {said}. {remedy}"
        ) from error
    except RuntimeError as error:  # of an upload; its cause says more
        raise RuntimeError(
            f"publish: {error} ({error.__cause__}) {repo} is as it was; publish again to go on, "
            f"files that have arrived are not sent twice."
        ) from error
    except OfflineModeIsEnabled as error:
        raise RuntimeError(
            f"publish: HF_HUB_OFFLINE is set, so {endpoint} is not asked. Unset it."
        ) from error
    except HTTPError as error:  # refused, reset, timed out
        raise RuntimeError(
            f"publish: {endpoint} does not answer ({error}). {repo} is as it was; publish again to "
            f"go on, files that have arrived are not sent twice."
        ) from error
