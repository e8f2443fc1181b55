import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipelines.atomic import PREFIX
from tests.training_hook import test_pretrain
from tests.training_hook.test_pretrain import assert_same_run, tiny_run
from training_hook.checkpoint import checkpoints, load_tensors, read_checkpoint
from training_hook.pretrain import pretrain
from training_hook.ranks import ALONE
from training_hook.saver import Saver

corpus, unbroken = test_pretrain.corpus, test_pretrain.unbroken
one_thread = test_pretrain.one_thread
CPU = torch.device("cpu")


def saver(folder: Path, **changes) -> Saver:
    return Saver(folder, tiny_run(**changes), ALONE, CPU)


def weights(value: float, rows: int = 64) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {f"weight{i}": torch.full((rows, 1024), value) for i in range(4)}}


def stored(path: Path, rows: int = 64) -> set[float]:
    into = {f"weight{i}": torch.zeros(rows, 1024) for i in range(4)}
    load_tensors(path, "model", into)
    return {float(value) for tensor in into.values() for value in tensor.unique()}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow over a size, as where the disk has no more left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_changes_after_save_is_not_in_the_checkpoint(tmp_path):
    writes = saver(tmp_path)
    tensors = weights(1.0, rows=8192)  # 128 MB take longer to write than to change
    writes.save(1, tensors, {"mark": "first"})
    for tensor in tensors["model"].values():
        tensor.fill_(2.0)
    assert checkpoints(tmp_path) == {}  # it is being written
    writes.wait()
    (path,) = checkpoints(tmp_path).values()
    assert stored(path, rows=8192) == {1.0}
    assert read_checkpoint(path)["mark"] == "first"


def test_saves_follow_each_other_and_prune(tmp_path):
    writes = saver(tmp_path, keep_last=2, keep_every=1_000)
    tensors = weights(0.0)
    for step in range(1, 6):
        for tensor in tensors["model"].values():
            tensor.fill_(step)
        writes.save(step, tensors, {})
    assert writes.last() == tmp_path / "step-00000005"
    assert {step: stored(path) for step, path in checkpoints(tmp_path).items()} == {
        4: {4.0},
        5: {5.0},
    }
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


def test_full_disk_is_raised_where_training_goes_on(tmp_path):
    writes = saver(tmp_path)
    writes.save(1, weights(1.0), {})
    writes.wait()
    with full_disk(1 << 16):
        writes.save(2, weights(2.0), {})
        writes.settle()
    assert writes.failed
    with pytest.raises(OSError, match="could not be written"):
        writes.wait()
    assert not writes.failed  # it was raised once
    assert list(checkpoints(tmp_path)) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    writes.save(3, weights(3.0), {})
    assert writes.last() == tmp_path / "step-00000003"


def test_pretrain_onto_a_full_disk_says_so_and_goes_on_later(corpus, unbroken, tmp_path):
    out = tmp_path / "run"
    with full_disk(100_000), pytest.raises(OSError, match="could not be written"):
        pretrain(tiny_run(), corpus / "mixture", out)
    assert checkpoints(out / "checkpoints") == {}
    assert pretrain(tiny_run(), corpus / "mixture", out)["status"] == "finished"
    assert_same_run(out, unbroken)
    assert not list(out.rglob(".*"))


SAVE_FOR_EVER = """
from itertools import count
from pathlib import Path

import torch

from tests.training_hook.test_saver import saver, weights

torch.set_num_threads(1)
writes = saver(Path(directory), keep_last=2, keep_every=1_000)
tensors = weights(0.0, rows=2048)
for step in count(1):
    for tensor in tensors["model"].values():
        tensor.fill_(step)
    writes.save(step, tensors, {"mark": step})
"""


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_hook.pretrain"])
    return context


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(4))
def test_process_killed_in_the_middle_of_a_write_leaves_the_checkpoint_before(
    tmp_path, processes, moment
):
    writer = processes.Process(target=exec, args=(SAVE_FOR_EVER, {"directory": str(tmp_path)}))
    writer.start()

    def being_written() -> list[Path]:
        return [
            p for p in tmp_path.glob(f"{PREFIX}step-*/model/*") if moment % 2 or p.stat().st_size
        ]

    while len(checkpoints(tmp_path)) < 2 or not being_written():
        assert writer.is_alive()
        time.sleep(0.0005)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    found = checkpoints(tmp_path)
    assert len(found) >= 2
    for step, path in found.items():
        assert read_checkpoint(path)["mark"] == step
        assert stored(path, rows=2048) == {float(step)}
    writes = saver(tmp_path)
    writes.save(max(found) + 1, weights(7.0), {})
    writes.wait()
    assert list(tmp_path.glob(f"{PREFIX}*")) == []
