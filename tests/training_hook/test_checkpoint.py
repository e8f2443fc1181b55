import itertools
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import stat
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

from training_hook.checkpoint import (
    checkpoint_name,
    checkpoints,
    load_tensors,
    load_weights,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from training_hook.rows import Rows

FOLDERS = ("model", "exp_avg", "exp_avg_sq")


def named_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "backbone.layers.0.mixer.in_proj.weight": torch.randn(24, 8, generator=generator),
        "backbone.layers.0.mixer.conv1d.weight": torch.randn(12, 1, 4, generator=generator),
        "backbone.layers.0.mixer.A_log": torch.randn(3, generator=generator),
    }


def save(directory: Path, step: int, state: dict | None = None) -> Path:
    tensors = {folder: named_tensors(step + i) for i, folder in enumerate(FOLDERS)}
    return save_checkpoint(directory, step, tensors, state or {})


def test_checkpoint_saved_and_loaded_is_equal_bit_for_bit(tmp_path):
    path = save(tmp_path, 7, {"stream": {"consumed": 56, "history": [[0, "ab"]]}})
    assert path == tmp_path / "step-00000007"
    manifest = read_checkpoint(path)
    assert manifest["step"] == 7
    assert manifest["stream"] == {"consumed": 56, "history": [[0, "ab"]]}
    for i, folder in enumerate(FOLDERS):
        wanted = named_tensors(7 + i)
        into = {name: torch.full_like(tensor, torch.nan) for name, tensor in wanted.items()}
        load_tensors(path, folder, into)
        for name, tensor in wanted.items():
            assert torch.equal(into[name], tensor)
    weights = load_weights(path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in named_tensors(7).items())


def test_checkpoint_of_parameters_loads_into_parameters(tmp_path):
    parameters = {"a": torch.nn.Parameter(torch.randn(3, 2))}
    path = save_checkpoint(tmp_path, 1, {"model": parameters}, {})
    into = {"a": torch.nn.Parameter(torch.zeros(3, 2))}
    load_tensors(path, "model", into)
    assert torch.equal(into["a"], parameters["a"])
    assert into["a"].requires_grad


def test_checkpoint_files_are_plain_safetensors_and_json(tmp_path):
    path = save(tmp_path, 1)
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    assert files == sorted(
        ["manifest.json", *(f"{folder}/model-00001-of-00001.safetensors" for folder in FOLDERS)]
    )
    stored = load_file(path / "model" / "model-00001-of-00001.safetensors")
    assert stored.keys() == named_tensors(0).keys()
    assert json.loads((path / "manifest.json").read_text())["files"].keys() == set(files) - {
        "manifest.json"
    }


def test_checkpoint_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in path.rglob("*") if p.is_file()}
    assert modes == {0o640}


def test_checkpoint_is_read_by_pytorchs_distributed_checkpoint(tmp_path):
    path = save(tmp_path, 1)
    into = {name: torch.zeros_like(tensor) for name, tensor in named_tensors(1).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is one process only
        dcp.load(into, storage_reader=HuggingFaceStorageReader(str(path / "model")), no_dist=True)
    assert all(torch.equal(into[name], tensor) for name, tensor in named_tensors(1).items())


def test_shards_of_pytorchs_distributed_checkpoint_load_whole(tmp_path):
    path = save(tmp_path, 1)
    shutil.rmtree(path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            named_tensors(5),
            storage_writer=HuggingFaceStorageWriter(str(path / "model"), save_distributed=True),
            no_dist=True,
        )
    into = {name: torch.zeros_like(tensor) for name, tensor in named_tensors(5).items()}
    load_tensors(path, "model", into)
    assert all(torch.equal(into[name], tensor) for name, tensor in named_tensors(5).items())


def test_shards_of_several_writers_load_as_one_tensor(tmp_path):
    path = save(tmp_path, 1)
    whole = torch.arange(12.0).reshape(6, 2)
    next((path / "model").iterdir()).unlink()
    for rank, rows in enumerate((slice(0, 4), slice(4, 6)), 1):
        offsets = json.dumps({"weight": {"saved_offsets": [rows.start, 0]}})
        save_file(
            {"weight": whole[rows].contiguous()},
            path / "model" / f"shard-0000{rank}-model-00001-of-00001.safetensors",
            metadata={"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": offsets},
        )
    into = {"weight": torch.zeros(6, 2)}
    load_tensors(path, "model", into)
    assert torch.equal(into["weight"], whole)
    (path / "model" / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"1 shards in .* do not make up weight \[6, 2\]"):
        load_tensors(path, "model", into)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 4),
    cuts=st.sets(st.integers(1, 8), max_size=4),
    column_cut=st.integers(1, 4),
    ranks=st.integers(1, 5),
)
def test_blocks_of_any_writers_load_into_rows_of_any_ranks(rows, columns, cuts, column_cut, ranks):
    whole = torch.arange(1.0, rows * columns + 1).reshape(rows, columns)
    borders = [0, *sorted(cut for cut in cuts if cut < rows), rows]
    across = sorted({0, min(column_cut, columns), columns})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        blocks = itertools.product(itertools.pairwise(borders), itertools.pairwise(across))
        for number, ((top, bottom), (left, right)) in enumerate(blocks):
            offsets = json.dumps({"weight": {"saved_offsets": [top, left]}})
            save_file(
                {"weight": whole[top:bottom, left:right].contiguous()},
                folder / f"{number}.safetensors",
                metadata={"DCP_SHARDING_INFO": offsets},
            )
        share = -(-rows // ranks)
        found = []
        for rank in range(ranks):
            first = min(rows, rank * share)
            local = torch.zeros(min(rows, first + share) - first, columns)
            load_tensors(folder.parent, "model", {"weight": Rows(local, first, (rows, columns))})
            found.append(local)
    assert torch.equal(torch.cat(found), whole)


def test_checkpoint_of_another_shape_is_refused_with_names(tmp_path):
    path = save(tmp_path, 1)
    into = named_tensors(0)
    into["backbone.layers.0.mixer.A_log"] = torch.zeros(4)
    into["lm_head.weight"] = into.pop("backbone.layers.0.mixer.conv1d.weight")
    with pytest.raises(ValueError, match="does not fit this model") as error:
        load_tensors(path, "model", into)
    text = str(error.value)
    assert "A_log is float32 [3] there and float32 [4] here" in text
    assert "conv1d.weight is float32 [12, 1, 4] there and missing here" in text
    assert "lm_head.weight is missing there and float32 [12, 1, 4] here" in text


def test_checkpoint_of_another_dtype_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"model": {"a": torch.zeros(2)}}, {})
    with pytest.raises(ValueError, match="a is float32 \\[2\\] there and bfloat16 \\[2\\] here"):
        load_tensors(path, "model", {"a": torch.zeros(2, dtype=torch.bfloat16)})


def test_checkpoint_truncated_or_without_manifest_is_refused(tmp_path):
    path = save(tmp_path, 1)
    shard = path / "exp_avg" / "model-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="its manifest says"):
        read_checkpoint(path)
    shard.unlink()
    with pytest.raises(ValueError, match="has no file"):
        read_checkpoint(path)
    (path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        read_checkpoint(path)
    assert checkpoints(tmp_path) == {}


def test_checkpoint_of_another_format_is_refused(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match="has format 99; this version reads 1"):
        read_checkpoint(path)


class Marker:
    """Unpickling one makes a file: what a hostile checkpoint would do."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_checkpoint_with_pickles_in_it_executes_nothing(tmp_path):
    path = save(tmp_path, 1)
    mark = tmp_path / "executed"
    for name in (".metadata", "model/.metadata", "model/pytorch_model.bin", "state.pt"):
        (path / name).write_bytes(pickle.dumps(Marker(mark)))
    read_checkpoint(path)
    load_weights(path)
    assert not mark.exists()
    pickle.loads((path / ".metadata").read_bytes())  # the trap itself works
    assert mark.exists()


def test_pickle_in_place_of_a_shard_is_refused(tmp_path):
    path = save(tmp_path, 1)
    mark = tmp_path / "executed"
    shard = path / "model" / "model-00001-of-00001.safetensors"
    data = pickle.dumps(Marker(mark))
    shard.write_bytes(data + b" " * (shard.stat().st_size - len(data)))
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_weights(path)
    assert not mark.exists()


def test_save_onto_a_full_disk_raises_and_leaves_the_earlier_one(tmp_path):
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"model": {"weight": torch.zeros(1 << 16)}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match="could not be written"):
            save_checkpoint(tmp_path, 2, big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(checkpoints(tmp_path)) == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint_name(1)]


def test_prune_keeps_the_newest_and_the_milestones(tmp_path):
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    assert prune_checkpoints(tmp_path, keep_last=2, keep_every=20) == [10, 30]
    assert list(checkpoints(tmp_path)) == [20, 40, 50]
    assert prune_checkpoints(tmp_path, keep_last=9, keep_every=1_000) == []


def test_save_of_the_same_step_replaces_it(tmp_path):
    save(tmp_path, 3, {"note": 1})
    assert read_checkpoint(save(tmp_path, 3, {"note": 2}))["note"] == 2


SAVE_FOR_EVER = """
from itertools import count
from pathlib import Path

import torch

from training_hook.checkpoint import prune_checkpoints, save_checkpoint

torch.set_num_threads(1)
for step in count(1):
    tensors = {f"weight{i}": torch.full((256, 1024), float(step)) for i in range(6)}
    save_checkpoint(Path(directory), step, {"model": tensors, "exp_avg": tensors}, {"mark": step})
    prune_checkpoints(Path(directory), keep_last=2, keep_every=1_000)
"""


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_hook.checkpoint"])  # imports torch once, not 12 times
    return context


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(12))
def test_process_killed_while_saving_leaves_the_last_checkpoint_usable(tmp_path, processes, moment):
    writer = processes.Process(target=exec, args=(SAVE_FOR_EVER, {"directory": str(tmp_path)}))
    writer.start()
    while len(checkpoints(tmp_path)) < 2:
        assert writer.is_alive()
        time.sleep(0.01)
    saved = max(checkpoints(tmp_path))
    time.sleep(random.Random(moment).uniform(0, 0.1))
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    found = checkpoints(tmp_path)
    step = max(found)
    assert step >= saved
    for path in found.values():
        mark = read_checkpoint(path)["mark"]
        for folder in ("model", "exp_avg"):
            into = {f"weight{i}": torch.zeros(256, 1024) for i in range(6)}
            load_tensors(path, folder, into)
            assert all(bool((tensor == mark).all()) for tensor in into.values())
    save_checkpoint(tmp_path, step + 1, {"model": {"a": torch.zeros(1)}}, {})
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
