"""What the fork server of the local engine loads, when it starts and how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.engines import fork_server

ROOT = Path(__file__).parents[2]

ASK = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from pipelines.engines.fork_server import start_for

def loaded(name):
    return name in sys.modules

if __name__ == "__main__":
    print(start_for(sys.argv[1]), "numba" in sys.modules, end=" ")
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        print(*pool.map(loaded, sys.argv[2:]))
"""
OURS = """
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe

def recipe():
    from filters.gopher_quality import GopherQuality
    return Recipe("mine", (JsonlReader(),), (GopherQuality(),))
"""


def ask(folder: Path, recipe: str, *modules: str) -> list[str]:
    """Returns whether the server was started, and what its workers have loaded, as words."""
    (folder / "ask.py").write_text(ASK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "ask.py", recipe, *modules],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
def test_workers_have_what_a_recipe_of_ours_imports(tmp_path):
    (tmp_path / "mine.py").write_text(OURS)
    modules = "numba", "pipelines.readers.jsonl", "filters.gopher_quality", "filters.language"
    assert ask(tmp_path, "mine.py:recipe", *modules) == ["True", "False", *3 * ["True"], "False"]
    found = ask(tmp_path, "flows.recipes.web:english_web", "filters.language", "pipelines.extract")
    assert found == ["True", "False", "True", "True"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("other.py", "import pipelines.recipe\nimport lots_of_weights\n"),
        ("beside.py", "from . import steps\n"),
        ("inside.py", "def recipe():\n    import lots_of_weights\n"),
        ("broken.py", "def recipe(:\n"),
        ("zeros.py", "\0"),
        ("package.steps", None),
        ("nowhere.py", None),
        ("no_such_module", None),
        ("flows.recipes.no_such_module", None),
        ("", None),
    ],
)
def test_other_recipes_wait_until_their_steps_are_known(tmp_path, monkeypatch, name, text):
    """None of them is run to find that out."""

    def start(modules: set[str]) -> None:
        raise AssertionError(f"started with {modules}")

    monkeypatch.setattr(fork_server, "start", start)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('this was run')\n")
    if text is not None:
        (tmp_path / name).write_text(text)
    assert fork_server.start_for(f"{name}:recipe") is False


def command(folder: Path, recipe: str) -> subprocess.Popen[str]:
    (folder / "docs.jsonl").write_text('{"text": "one document"}\n')
    arguments = ["curate", recipe, "--source", "docs.jsonl", "--out", "out"]
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("wait_s", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
def test_ctrl_c_while_server_and_workers_start_is_answered_in_one_line(tmp_path, wait_s):
    (tmp_path / "mine.py").write_text(OURS)
    process = command(tmp_path, "mine.py:recipe")
    assert process.stderr is not None
    assert "listing" in process.stderr.readline()
    time.sleep(wait_s)
    os.killpg(process.pid, signal.SIGINT)
    last = process.communicate()[1].splitlines()
    assert "Traceback" not in "".join(last)
    if wait_s == 0:
        assert [line.partition(";")[0] for line in last] == ["gristmill: interrupted"]


@pytest.mark.slow
def test_recipe_that_fails_is_told_once(tmp_path):
    (tmp_path / "mine.py").write_text(OURS + "raise ValueError('not today')\n")
    _, said = (process := command(tmp_path, "mine.py:recipe")).communicate()
    assert process.returncode == 2
    assert said == "gristmill: not today\n"


@pytest.mark.slow
def test_exit_code_and_output_are_those_of_the_command(tmp_path):
    (tmp_path / "mine.py").write_text(OURS)
    process = command(tmp_path, "mine.py:recipe")
    out, said = process.communicate()  # to their end: the fork server has ended as well
    assert (process.returncode, out) == (1, "")
    assert "all 1 documents were dropped: too_few_words 1" in said
