"""Masked documents: none of their tokens reaches a batch, and nothing else changes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtures.holdout import held_out
from mixtures.layout import MANIFEST, MASK_FILE, MASKED, SIDECAR_FILE
from mixtures.lineage import lineage, samples_of, seen
from mixtures.masked import mask
from mixtures.mixture import Mixture, Part, mix
from mixtures.stream import Batch, Stream
from mixtures.token_dataset import TokenDataset
from pipelines.dataset import write_json
from tests.laws.harness import ROOT, digest

LENGTH = 32
LENGTHS = np.maximum(1, np.random.default_rng(2).lognormal(2.8, 1.1, 300)).astype(int).tolist()
PARTS = (Part("docs", 3.0, 20.0), Part("code", 1.0, 20.0))
SAMPLES = 300
END = 2


@pytest.fixture
def tokens(tmp_path: Path, write_tokens: Callable[..., Path]) -> dict[str, Path]:
    """Texts in two shards, and conversations with a loss mask (`code`)."""
    docs = write_tokens(tmp_path / "docs", [LENGTHS[:100], [], LENGTHS[100:200]], "docs")
    code = write_tokens(tmp_path / "code", [LENGTHS[200:]], "code")
    manifest = json.loads((code / MANIFEST).read_text())
    trained = np.random.default_rng(7).random(manifest["shards"][0]["tokens"]) < 0.5
    trained.tofile(code / MASK_FILE.format(0))
    write_json(code / MANIFEST, manifest | {"masked": True})
    return {"docs": docs, "code": code}


def mixed(tokens: dict[str, Path], out: Path) -> Path:
    mix(Mixture("two", PARTS, LENGTH, num_samples=SAMPLES, holdout_share=0.1), tokens, out, seed=5)
    return out


def documents(folder: Path) -> dict[str, set[int]]:
    """The tokens of each document; in these datasets no token is in two shards."""
    dataset, found = TokenDataset(folder), {}
    for shard in range(dataset.num_shards):
        for row in dataset.sidecar(shard).to_pylist():
            there = dataset.tokens(shard)[row["start"] :][: row["length"]]
            found[row["id"]] = set(there.tolist())
    return found


def whole_mask(batch: Batch) -> np.ndarray:
    return np.ones_like(batch.tokens[:, 1:], bool) if batch.loss_mask is None else batch.loss_mask


def everything(mixture: Path) -> Batch:
    return Stream(mixture, 1).batch(np.arange(SAMPLES))


def test_a_new_mixture_holds_none_of_them(tokens, tmp_path):
    before = mixed(tokens, tmp_path / "before")
    held = [document.document_id for document in held_out(before, 1 << 30)]
    gone = [*list(documents(tokens["docs"]))[::7], held[0]]
    bins = digest(tokens["docs"])
    mask(tokens["docs"], gone)
    assert {name: digest(tokens["docs"])[name] for name in bins} == bins  # what was there stays
    after = mixed(tokens, tmp_path / "after")
    for name in gone:
        assert samples_of(after, name) == []
    listed = {row.document_id for index in range(SAMPLES) for row in lineage(after, index)}
    assert not listed & set(gone)
    assert not {document.document_id for document in held_out(after, 1 << 30)} & set(gone)
    part = json.loads((after / MANIFEST).read_text())["parts"][0]
    assert part["taken_down"]["documents"] == len(gone)
    assert part["documents"] + part["held_out"] + len(gone) == 200
    marks = [json.loads((m / MANIFEST).read_text())["fingerprint"] for m in (before, after)]
    assert marks[0] != marks[1]
    with pytest.raises(ValueError, match="another request made: token_datasets"):
        mixed(tokens, tmp_path / "before")


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(docs=st.sets(st.integers(0, 199), max_size=30), code=st.sets(st.integers(0, 99)))
def test_an_older_mixture_blanks_them_and_keeps_all_else(tokens, tmp_path, docs, code):
    root = Path(shutil.copytree(tmp_path / "docs", tmp_path / str(time.monotonic_ns()) / "docs"))
    fresh = {"docs": root, "code": Path(shutil.copytree(tokens["code"], root.parent / "code"))}
    mixture = mixed(fresh, root.parent / "mixture")
    wanted = everything(mixture)
    gone: dict[str, list[str]] = {}
    for part, chosen in (("docs", docs), ("code", code)):
        names = list(documents(fresh[part]))
        gone[part] = [names[number] for number in sorted(chosen)]
        if chosen:
            mask(fresh[part], gone[part])
    found = everything(mixture)
    assert np.array_equal(found.boundaries, wanted.boundaries)
    tokens_of, counts = wanted.tokens.copy(), whole_mask(wanted).copy()
    for index in range(SAMPLES):  # every place of a masked document, one after the other
        filled = 0
        for place in lineage(mixture, index):
            size = place.stop - place.start
            if place.document_id in gone[place.part]:
                tokens_of[index, filled : filled + size] = END
                counts[index, max(0, filled - 1) : filled + size - 1] = False
            filled += size
    assert np.array_equal(found.tokens, tokens_of)
    assert np.array_equal(whole_mask(found), counts)
    assert not {d.document_id for d in held_out(mixture, 1 << 30)} & {*gone["docs"], *gone["code"]}


def test_a_run_that_goes_on_says_since_when_documents_are_blank(tokens, tmp_path):
    mixture = mixed(tokens, tmp_path / "mixture")
    unbroken = Stream(mixture, 4)
    wanted = [next(unbroken) for _ in range(70)]
    first = Stream(mixture, 4)
    for _ in range(20):
        next(first)
    assert "blanked" not in first.state_dict()
    # the tokens of the last shard stand nowhere else
    alone = [name for name, there in documents(tokens["docs"]).items() if min(there) > 20_000]
    often = {name: samples_of(mixture, name) for name in alone}
    name, later = [n for n, found in often.items() if found and found[0] < 40 and found[-1] > 160][
        :2
    ]
    state = first.state_dict()
    assert seen(mixture, name, state) == samples_of(mixture, name, before=80)
    mask(tokens["docs"], [name])
    second = Stream(mixture, 4)
    second.load_state_dict(json.loads(json.dumps(state)))
    holds = set(samples_of(mixture, name))
    for step in range(20, 40):
        batch = next(second)
        same = [index for index in batch.sample_indices if int(index) not in holds]
        rows = [int(index) - step * 4 for index in same]
        assert np.array_equal(batch.tokens[rows], wanted[step].tokens[rows])
        assert np.array_equal(whole_mask(batch)[rows], whole_mask(wanted[step])[rows])
        assert not documents(tokens["docs"])[name] & set(batch.tokens.flatten().tolist())
    state = second.state_dict()
    assert [samples for samples, _ in state["blanked"]] == [80]
    assert seen(mixture, name, state) == samples_of(mixture, name, before=80)
    assert seen(mixture, later, state) == samples_of(mixture, later, before=160)
    mask(tokens["docs"], [later])
    third = Stream(mixture, 8)
    third.load_state_dict(json.loads(json.dumps(state)))
    next(third)
    state = third.state_dict()
    assert [samples for samples, _ in state["blanked"]] == [80, 160]
    assert seen(mixture, later, state) == samples_of(mixture, later, before=160)
    assert seen(mixture, name, state) == samples_of(mixture, name, before=80)
    for path in tokens["docs"].glob("masked*"):
        path.unlink()
    with pytest.raises(ValueError, match="which the token datasets do not say any more"):
        Stream(mixture, 4).load_state_dict(state)


def test_a_mixture_after_a_mask_is_blanked_by_the_next_only(tokens, tmp_path):
    one, two = list(documents(tokens["docs"]))[:2]
    mask(tokens["docs"], [one])
    mixture = mixed(tokens, tmp_path / "mixture")
    wanted = everything(mixture)
    stream = Stream(mixture, 4)
    next(stream)
    assert "blanked" not in stream.state_dict()
    mask(tokens["docs"], [two])
    found, holds = everything(mixture), samples_of(mixture, two)
    rows = np.setdiff1d(np.arange(SAMPLES), holds)
    assert np.array_equal(found.tokens[rows], wanted.tokens[rows])
    assert not np.array_equal(found.tokens, wanted.tokens)


def test_fingerprints_say_what_is_masked_and_not_how(tokens, tmp_path):
    names = list(documents(tokens["docs"]))
    other = Path(shutil.copytree(tokens["docs"], tmp_path / "other"))
    plain = TokenDataset(other).fingerprint
    first = mask(tokens["docs"], names[3:5])
    again = mask(tokens["docs"], names[3:5])
    assert (first["added"], again["added"]) == (2, 0)
    assert again["fingerprints"] == first["fingerprints"]
    second = mask(tokens["docs"], names[2:4])
    assert (second["version"], second["documents"], second["added"]) == (2, 3, 1)
    at_once = mask(other, names[2:5])
    assert at_once["fingerprint"] == second["fingerprint"] == TokenDataset(other).fingerprint
    assert len({plain, first["fingerprint"], second["fingerprint"]}) == 3
    assert [path.name for path in other.glob("masked*")] == ["masked-00001.parquet", MASKED]


def test_children_of_a_split_document_go_with_it(tokens):
    path = tokens["docs"] / SIDECAR_FILE.format(0)
    table = pq.read_table(path)
    names = table.column("id").to_pylist()
    parent = names[0]
    column = [f"{parent}#{n}" if n < 3 else name for n, name in enumerate(names)]
    pq.write_table(table.set_column(0, "id", [column]), path)
    assert mask(tokens["docs"], [parent])["documents"] == 3


def test_unknown_ids_are_refused_and_change_nothing(tokens, tmp_path):
    before = digest(tokens["docs"])
    known = next(iter(documents(tokens["docs"])))
    with pytest.raises(ValueError, match=f"1 of the 2 ids are in no shard of .*: {'0' * 32}"):
        mask(tokens["docs"], [known, "0" * 32])
    with pytest.raises(ValueError, match="Nothing was masked"):
        mask(tokens["docs"], ["0" * 32], strict=False)
    with pytest.raises(ValueError, match="it is no finished token dataset"):
        mask(tmp_path, [known])
    with pytest.raises(ValueError, match="is finished, and no token dataset"):
        mask(mixed(tokens, tmp_path / "mixture"), [known])
    assert digest(tokens["docs"]) == before
    assert mask(tokens["docs"], [known, "0" * 32], strict=False)["documents"] == 1
    (tokens["docs"] / "masked-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is missing or damaged"):
        TokenDataset(tokens["docs"])


def test_command_line_masks_and_a_kill_leaves_one_of_both(tokens, tmp_path):
    names = list(documents(tokens["docs"]))[:50]
    (tmp_path / "list.txt").write_text("\n".join(names))
    command = [sys.executable, "-m", "flows.cli", "mask"]
    whole = shutil.copytree(tokens["docs"], tmp_path / "whole")
    list_file = str(tmp_path / "list.txt")
    found = subprocess.run(
        [*command, str(whole), list_file, "--json"], cwd=ROOT, capture_output=True, check=True
    )
    assert json.loads(found.stdout)["documents"] == 50
    wanted, plain = digest(whole), digest(tokens["docs"])
    states = []
    for number in range(12):
        folder = shutil.copytree(tokens["docs"], tmp_path / f"killed{number}")
        process = subprocess.Popen([*command, str(folder), list_file], cwd=ROOT, stdout=-3)
        time.sleep(0.15 * number)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        states.append(TokenDataset(folder).masked_documents.fingerprints)
        subprocess.run([*command, str(folder), list_file], cwd=ROOT, stdout=-3, check=True)
        assert digest(folder) == wanted
    assert () in states
    assert digest(tokens["docs"]) == plain
    (tmp_path / "urls.txt").write_text("https://x.org/1\n")
    wrong = subprocess.run(
        [*command, str(whole), str(tmp_path / "urls.txt")], cwd=ROOT, capture_output=True
    )
    assert wrong.returncode == 2
    assert b"token datasets know ids only" in wrong.stderr
