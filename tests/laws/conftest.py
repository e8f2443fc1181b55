"""Fixtures that the law tests share."""

from pathlib import Path

import pytest

from tests.laws.harness import RECIPES, run, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> list[str]:
    return write_corpus(tmp_path_factory.mktemp("corpus"), sources=6, documents=1500)


@pytest.fixture(scope="session")
def reference(corpus, tmp_path_factory) -> Path:
    """The dataset of an undisturbed run with one worker."""
    return undisturbed("small", corpus, tmp_path_factory)


@pytest.fixture(scope="session")
def spans_reference(corpus, tmp_path_factory) -> Path:
    """The same of the recipe that cuts spans."""
    return undisturbed("spans", corpus, tmp_path_factory)


def undisturbed(recipe: str, corpus: list[str], tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp(recipe) / "out"
    result = run("curate", f"{RECIPES}:{recipe}", *corpus, "--out", str(out), "--workers", "1")
    assert result.returncode == 0, result.stderr
    return out
