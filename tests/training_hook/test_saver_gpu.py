from pathlib import Path

import pytest
import torch

from training_hook.checkpoint import checkpoints, load_tensors
from training_hook.ranks import ALONE
from training_hook.rows import whole
from training_hook.saver import Saver

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS = 64 * 1024  # 256 MB: the copy takes milliseconds, the update would be done before


def stored(path: Path, folder: str, like: torch.Tensor) -> torch.Tensor:
    into = {"weight": torch.zeros(like.shape)}
    load_tensors(path, folder, into)
    return into["weight"]


def test_update_waits_on_the_device_for_the_copy(tmp_path):
    from tests.training_hook.test_pretrain import tiny_run

    device = torch.device("cuda")
    weight = torch.nn.Parameter(torch.ones(ROWS, 1024, device=device))
    amaxes = torch.ones(16, 2, device=device)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    saver = Saver(tmp_path, tiny_run(keep_last=9), ALONE, device)
    optimizer.register_step_pre_hook(saver.before_update)
    for step in range(1, 4):
        before = float(weight[0, 0].detach())
        tensors = {"model": {"weight": whole(weight)}, "amaxes": {"weight": amaxes}}
        saver.save(step, tensors, {"value": before})
        amaxes.add_(1)  # changes before the update, and is saved as it was
        weight.grad = torch.full_like(weight, -1.0)
        optimizer.step()
        torch.cuda.synchronize()
        assert float(weight[0, 0].detach()) == before + 1
    saver.wait()
    for step, path in checkpoints(tmp_path).items():
        assert (stored(path, "model", weight) == step).all()
        assert (stored(path, "amaxes", amaxes) == step).all()


def test_buffers_are_pinned_and_stay(tmp_path):
    from tests.training_hook.test_pretrain import tiny_run

    device = torch.device("cuda")
    saver = Saver(tmp_path, tiny_run(), ALONE, device)
    weight = torch.zeros(128, 128, device=device)
    places = set()
    for step in (1, 2):
        saver.save(step, {"model": {"weight": whole(weight)}}, {})
        saver.wait()
        (buffer,) = saver._buffers.values()
        assert buffer.is_pinned()
        places.add(buffer.data_ptr())
    assert len(places) == 1
