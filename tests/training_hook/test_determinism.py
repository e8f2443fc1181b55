import os

import pytest
import torch
from torch._inductor import config as inductor

from training_hook.determinism import CUBLAS_WORKSPACE, deterministic_algorithms


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)


def settings() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        inductor.deterministic,
    )


def test_deterministic_algorithms_hold_inside_and_no_longer():
    before = settings()
    with deterministic_algorithms(True):
        assert settings() == (True, False, True)
        assert os.environ[CUBLAS_WORKSPACE] == ":4096:8"
    assert settings() == before
    with pytest.raises(KeyError), deterministic_algorithms(True):
        raise KeyError
    assert settings() == before


def test_deterministic_algorithms_off_change_nothing():
    before = settings()
    with deterministic_algorithms(False):
        assert settings() == before
    assert CUBLAS_WORKSPACE not in os.environ


def test_deterministic_algorithms_keep_a_workspace_that_was_chosen(monkeypatch):
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":16:8")
    with deterministic_algorithms(True):
        assert os.environ[CUBLAS_WORKSPACE] == ":16:8"
