import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from flows import cli
from pipelines.load import load, load_function
from pipelines.recipe import Recipe

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )


def commands() -> list[str]:
    app = cli.application()
    names = [c.name or c.callback.__name__ for c in app.registered_commands]
    return names + [group.name for group in app.registered_groups]


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_an_example_and_stands_in_the_readme(name):
    result = run(name, "--help")
    assert result.returncode == 0
    assert (
        f"gristmill {name}" in (ROOT / "README.md").read_text()
        or f"`{name}" in (ROOT / "README.md").read_text()
    )
    if name not in ("tokenizer", "classifier"):
        assert "Example: gristmill" in result.stdout


def test_options_that_the_readme_gives_exist():
    group = typer.main.get_command(cli.application())
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = [line.split() for line in re.findall(r"bin/gristmill (.*)", text)]
    assert len(lines) > 20
    for words in lines:
        command = group.commands[words[0]]
        command = getattr(command, "commands", {words[1]: command})[words[1]]
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, words


def test_help_imports_nothing_heavy():
    code = (
        "import sys, flows.cli\n"
        "flows.cli.application()\n"
        "print([m for m in ('pyarrow', 'numba', 'torch', 'prefect') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_published_recipes_stand_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "flows" / "recipes").glob("[a-z]*.py"):
        assert f"flows.recipes.{path.stem}:" in readme


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("english_web", "wanted module:function"),
        ("flows.recipes.absent:x", "there is no module flows.recipes.absent"),
        ("flows.recipes.web:absent", "has no 'absent'; it has: english_web"),
        ("absent.py:x", "there is no file absent.py"),
    ],
)
def test_a_wrong_recipe_name_says_what_there_is(name, words):
    with pytest.raises(ValueError, match=words):
        load_function(name, "recipe")


@functools.cache
def made() -> int:
    return 7


number = 7


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (f"{__file__}:made", {}, "it returns int; wanted Recipe"),
        (f"{__file__}:number", {}, "it is of type int, no function"),
        (f"{__file__}:made", {"size": "3"}, "unexpected keyword argument 'size'.* are: none"),
        ("flows.recipes.web:english_web", {"langage": "de"}, "langage.*its arguments are: "),
    ],
)
def test_function_that_makes_something_else_is_told_with_what_was_wanted(
    name, arguments, words, monkeypatch
):
    monkeypatch.setitem(sys.modules, Path(__file__).stem, sys.modules[__name__])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match=words):
        load(name, "recipe", Recipe, arguments)


def test_wrong_usage_exits_with_2_and_names_the_remedy(tmp_path):
    assert run("curate").returncode == 2
    size = run("curate", "flows.recipes.web:english_web", "--out", str(tmp_path), "--memory", "8")
    assert size.returncode == 2
    assert "for example 8GiB" in size.stderr
    unfinished = run("why", str(tmp_path), "00")
    assert unfinished.returncode == 2
    assert "not a dataset" in unfinished.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["pretrain", "sft"])
def test_dry_run_needs_nothing_but_the_run(verb):
    name = {"pretrain": "flows.runs.hybrid_1b:run", "sft": "flows.runs.sft_tiny:run"}[verb]
    plan = json.loads(run(verb, name, "--dry-run", "--json", "--device", "cpu").stdout)
    assert plan["state_bytes"] == 16 * plan["parameters"]
    assert plan["tokens"] >= plan["steps"] > 0
    shown = run(verb, name, "--dry-run", "--device", "cpu")
    assert shown.returncode == 0, shown.stderr
    assert "gpu_memory_bytes" in shown.stdout
    needed = run(verb, name, "--mixture", "somewhere")
    assert needed.returncode == 2
    assert "--out" in needed.stderr
    assert "missing" in needed.stderr


def test_json_is_one_object_on_stdout(tmp_path):
    lines = [
        json.dumps({"text": f"the number of the page is {i} and that is all"}) for i in range(50)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    result = run(
        "curate",
        "tests/laws/law_recipes.py:no_dedup",
        "--source",
        str(tmp_path / "in.jsonl"),
        "--out",
        str(tmp_path / "out"),
        "--json",
    )
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert manifest["documents_in"] == manifest["kept"] + manifest["dropped"] == 50
