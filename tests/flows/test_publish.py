import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, HfApi

from filters.gopher_quality import GopherQuality
from flows.publish import is_sealed, public_manifest, publish, sealed
from pipelines.clean import CleanText
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.dedup.exact import ExactDedup
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source
from tests.flows.hub_server import NAMESPACE, READER, TOKEN, Hub, Trouble

# httpx2 about how huggingface_hub 2.4 uses it
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = f"{NAMESPACE}/pages"
TEXT = "the of and to data model page tree river stone light with that have city year"
WORDS = TEXT.split()
# What a user does with a published dataset; the client knows nothing but the name.
CLIENT = """
import io, json, sys
from contextlib import redirect_stdout
from datasets import get_dataset_config_names, load_dataset, load_dataset_builder
from huggingface_hub import DatasetCard, snapshot_download

repo, out = sys.argv[1:]
card = DatasetCard.load(repo, repo_type="dataset")
example = card.text.split("```python\\n")[1].split("```")[0]
with redirect_stdout(io.StringIO()) as printed:
    exec(example, namespace := {})
builder = load_dataset_builder(repo)
stream = load_dataset(repo, split="train", streaming=True)
json.dump({
    "configs": get_dataset_config_names(repo),
    "printed": printed.getvalue(),
    "loaded": namespace["documents"].to_list(),
    "streamed": list(stream),
    "ledger": namespace["ledger"].to_list(),
    "dropped": len(namespace["dropped"]),
    "features": sorted(builder.info.features),
    "num_bytes": [builder.info.splits["train"].num_bytes, namespace["documents"].data.nbytes],
    "language": card.data.language,
    "license": card.data.license,
    "size": card.data.size_categories,
    "snapshot": snapshot_download(repo, repo_type="dataset", local_dir=out),
}, sys.stdout)
"""


def documents(start: int, count: int) -> list[dict]:
    """Texts of 30 words; every fifth is a copy, one in seven too short, some have a licence."""
    rows = []
    for number in range(start, start + count):
        place = number - number % 5 if number % 5 == 1 else number
        words = [WORDS[(place * 7 + step * (1 + place % 3)) % len(WORDS)] for step in range(30)]
        text = " ".join([*words, f"number {place}"]) if number % 7 else "too short"
        rows.append({"text": text, "licence": "CC-BY-4.0" if number % 2 else "MIT"})
    return rows


def make_dataset(folder: Path, count: int) -> Path:
    """Curates three sources; nothing of the last one is kept, so its data file has no rows."""
    folder.mkdir(parents=True)
    rows = {"books": documents(0, count), "web": documents(count, count)}
    rows["scraps"] = [{"text": "too short", "licence": None}] * 20
    sources = []
    for name, records in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(record) for record in records))
        sources.append(Source(name, str(path)))
    steps = (CleanText(), GopherQuality(min_words=5, min_stop_words=1), ExactDedup())
    recipe = Recipe("pages", (JsonlReader(columns=("licence",)),), steps)
    curate(recipe, sources, folder / "pages", Settings(workers=1))
    return folder / "pages"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset") / "a", 100)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as hub:
        yield hub


def send(dataset: Path, hub: Hub, **options) -> dict:
    return publish(dataset, REPO, **{"endpoint": hub.url, "token": TOKEN} | options)


@pytest.mark.slow
def test_published_dataset_loads_streams_and_downloads_as_a_user_would_do_it(
    dataset, hub, tmp_path
):
    result = send(dataset, hub)
    assert result["changed"]
    assert result["uploaded"] == result["files"] == 9  # 3 data, 3 ledger, inputs, manifest, card
    assert result["url"] == f"{hub.url}/datasets/{REPO}"
    assert [c.title for c in hub.repos[REPO].commits.values()] == [
        "initial commit",
        f"Publish {result['documents']} documents of pages",
    ]
    uploads = len(hub.log)
    client = subprocess.run(
        [sys.executable, "-c", CLIENT, REPO, str(tmp_path / "snapshot")],
        env=os.environ | hub.environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert client.returncode == 0, client.stderr
    seen = json.loads(client.stdout)
    source = Dataset(dataset)
    kept = source.table("data").to_pylist()
    assert seen["configs"] == ["documents", "ledger"]
    assert seen["loaded"] == seen["streamed"] == kept
    assert len(kept) == source.manifest["kept"] == result["documents"]
    assert seen["ledger"] == source.table("ledger").to_pylist()
    assert seen["dropped"] == source.manifest["dropped"] > 20
    assert seen["printed"].startswith(kept[0]["text"][:200])
    assert kept[0]["id"] in seen["printed"]
    assert seen["features"] == sorted(source.table("data").column_names)
    stated, loaded = seen["num_bytes"]
    assert stated == pytest.approx(loaded, rel=0.05)
    assert seen["license"] == ["cc-by-4.0", "mit"]
    assert seen["size"] == ["n<1K"]
    assert any(" -> 206" in line for line in hub.log[uploads:])
    # what was downloaded is a gristmill dataset again
    snapshot = Dataset(seen["snapshot"])
    assert snapshot.table("data").to_pylist() == kept
    dropped = next(row for row in seen["ledger"] if row["dropped_by"])
    assert snapshot.find("ledger", dropped["id"]) == dropped
    assert snapshot.files("dropped") == []
    assert str(dataset.parent) not in (snapshot.path / "manifest.json").read_text()


def test_second_publish_of_the_same_dataset_changes_nothing(dataset, hub):
    first = send(dataset, hub)
    posts = len([line for line in hub.log if "/commit/" in line])
    second = send(dataset, hub)
    assert not second["changed"]
    assert second["revision"] == first["revision"]
    assert second["card"] == first["card"]
    assert len([line for line in hub.log if "/commit/" in line]) == posts == 1


def test_other_options_add_and_remove_files_of_the_same_dataset(dataset, hub):
    send(dataset, hub)
    more = send(dataset, hub, dropped=True, licence="ODC-By-1.0")
    assert more["uploaded"] == 5  # three files of dropped documents, manifest and card
    head = hub.repos[REPO].files
    assert len([path for path in head if path.startswith("dropped/")]) == 3
    assert DatasetCard(head["README.md"].data.decode()).data.license == "odc-by"
    less = send(dataset, hub, ledger=False)
    assert less["deleted"] == 6
    assert not [path for path in hub.repos[REPO].files if path.startswith(("ledger", "dropped"))]


def test_failing_upload_leaves_the_repository_as_it_was_and_goes_on_later(dataset, hub):
    hub.troubles.append(Trouble(r"POST .*/commit/main", 500, 1))
    with pytest.raises(RuntimeError, match=f"answered 500 for {REPO}.*publish again"):
        send(dataset, hub)
    assert set(hub.repos[REPO].files) == {".gitattributes"}
    sent = [line for line in hub.log if line.startswith("PUT")]
    assert len(sent) == 7
    assert send(dataset, hub)["changed"]
    assert [line for line in hub.log if line.startswith("PUT")] == sent


def test_busy_hub_is_asked_again(dataset, hub):
    hub.troubles.append(Trouble(r"PUT /_lfs/", 503, 2))
    assert send(dataset, hub)["changed"]
    assert len([line for line in hub.log if line.endswith("-> 503")]) == 2


def test_other_datasets_and_strange_files_are_replaced_only_when_told(dataset, hub, tmp_path):
    send(dataset, hub)
    other = make_dataset(tmp_path / "b", 60)
    with pytest.raises(ValueError, match=r"holds another dataset .* of pages.*--replace"):
        send(other, hub)
    result = send(other, hub, replace=True)
    assert result["changed"]
    held = hub.repos[REPO].files
    assert set(held) - {".gitattributes"} == {
        *(e["path"] for e in json.loads(held["manifest.json"].data)["files"]),
        "manifest.json",
        "README.md",
    }
    api = HfApi(endpoint=hub.url, token=TOKEN)
    strange = f"{NAMESPACE}/strange"
    api.create_repo(strange, repo_type="dataset", private=True)
    api.upload_file(
        path_or_fileobj=b"a,b\n",
        path_in_repo="table.csv",
        repo_id=strange,
        repo_type="dataset",
    )
    with pytest.raises(ValueError, match=r"holds 1 files .* for example table\.csv"):
        publish(dataset, strange, endpoint=hub.url, token=TOKEN)


def test_card_edited_by_hand_is_kept(dataset, hub):
    card = send(dataset, hub)["card"]
    HfApi(endpoint=hub.url, token=TOKEN).upload_file(
        path_or_fileobj=(card + "\nContact: me\n").encode(),
        path_in_repo="README.md",
        repo_id=REPO,
        repo_type="dataset",
    )
    with pytest.raises(ValueError, match="was edited by hand"):
        send(dataset, hub)
    assert send(dataset, hub, replace=True)["uploaded"] == 1


def test_public_repository_is_no_place_for_a_private_dataset(dataset, hub):
    assert not send(dataset, hub, private=False)["private"]
    with pytest.raises(ValueError, match="is public, and it was asked for a private one"):
        send(dataset, hub, private=True)
    private = publish(dataset, f"{NAMESPACE}/mine", endpoint=hub.url, token=TOKEN)
    assert private["private"]
    assert hub.repos[f"{NAMESPACE}/mine"].private


@pytest.mark.parametrize(
    ("token", "repo", "error", "words"),
    [
        ("", REPO, ValueError, "no token for .* set|Set HF_TOKEN"),
        ("hf_expired", REPO, RuntimeError, "answered 40[13].*(write access|hf auth login)"),
        (READER, REPO, RuntimeError, "answered 403.*write access"),
        (TOKEN, "stranger/pages", RuntimeError, "answered 403.*write access"),
        (TOKEN, "pages", ValueError, "wanted namespace/name"),
        (TOKEN, "a b/c", ValueError, "a b/c"),
    ],
)
def test_refused_tokens_and_names_say_what_is_wanted(dataset, hub, token, repo, error, words):
    with pytest.raises(error, match=words):
        publish(dataset, repo, endpoint=hub.url, token=token)
    assert not hub.repos


def test_hub_that_does_not_answer_is_an_error_that_says_so(dataset, hub):
    with Hub() as gone:
        endpoint = gone.url
    with pytest.raises(RuntimeError, match=f"{endpoint} does not answer"):
        publish(dataset, REPO, endpoint=endpoint, token=TOKEN)


def test_dry_run_asks_nothing_of_the_hub(dataset, hub):
    result = send(dataset, hub, dry_run=True, token="")
    assert hub.log == []
    assert result["files"] == 9
    assert not result["changed"]
    assert result["card"].startswith("---\n")


def test_damaged_file_is_not_published(dataset, hub, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    path = Dataset(copy).data_files()[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} is not the file .* damaged"):
        send(copy, hub)
    path.unlink()
    with pytest.raises(ValueError, match="0 bytes there"):
        send(copy, hub)
    assert hub.log == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["wheel.json"], "a run of the flywheel. Publish .*/dataset"),
        (["config.json", "model.safetensors"], "a model. Upload it with `hf upload`"),
        (["vocabulary.json", "tokenizer.json"], "a tokenizer"),
        (["manifest.json", "tokens-00000.bin"], "a token dataset"),
        (["manifest.json"], "not that of a curated dataset"),
        (["text.txt"], "has no manifest.json"),
        ([], "does not exist"),
    ],
)
def test_what_is_no_curated_dataset_is_refused_by_name(tmp_path, files, words):
    folder = tmp_path / "folder"
    for name in files:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=words):
        publish(folder, REPO, dry_run=True)


@pytest.mark.parametrize(
    ("root", "public"),
    [
        ("/home/me/crawl", "crawl"),
        ("../crawl/2026", "2026"),
        ("crawl/2026", "crawl/2026"),
        ("s3://key:secret@bucket/crawl?token=x", "s3://bucket/crawl"),
        ("hf://datasets/me/web", "hf://datasets/me/web"),
    ],
)
def test_published_manifest_names_no_place_of_this_machine(root, public):
    manifest = {"sources": [{"name": "a", "root": root}], "files": [{"path": "data/0"}], "kept": 1}
    assert public_manifest(manifest, []) == {
        "sources": [{"name": "a", "root": public}],
        "files": [],
        "kept": 1,
    }


def test_seal_shows_any_edit():
    card = sealed("# title\n\ntext\n")
    assert is_sealed(card)
    assert not is_sealed(card.replace("text", "test"))
    assert not is_sealed(card + "more\n")
    assert not is_sealed("# title\n")
