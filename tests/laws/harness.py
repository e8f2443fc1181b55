"""A corpus of several sources, so that a run has several work units; the command as a process."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
RECIPES = "tests/laws/law_recipes.py"
TEXT = "the of and to data model page tree river stone light a with that have run city year"
WORDS = TEXT.split()


def document(rng: np.random.Generator, words: int) -> str:
    chosen = rng.integers(0, len(WORDS), (max(1, words // 8), 8)).tolist()
    return "\n".join(" ".join([WORDS[word] for word in line]) + "." for line in chosen)


def write_corpus(folder: Path, sources: int, documents: int, words: int = 120) -> list[str]:
    """Writes JSONL sources: duplicates and near-duplicates across them, short and broken ones."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = []
    for number in range(sources):
        rng = np.random.default_rng(number)
        shared = np.random.default_rng(1234)
        path = folder / f"s{number}.jsonl"
        with path.open("wb") as stream:
            for index in range(documents):
                kind = rng.integers(0, 20)
                text = document(shared if kind < 3 else rng, int(rng.integers(20, 2 * words)))
                if kind == 2:
                    text += f"\nAnd number {index} of source {number}."
                if kind == 4:
                    text = "too short"
                elif kind == 5:
                    text = "the same line again and again\n" * 30
                line = json.dumps({"text": text, "n": index}).encode()
                stream.write((b'{"text": "\xff"}' if kind == 6 else line) + b"\n")
        arguments += ["--source", f"s{number}={path}"]
    return arguments


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *arguments]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300, **options
    )


def kill_at_stages(arguments: Sequence[str], stages: Sequence[str]) -> None:
    """Starts a command as often as there are stages and kills it when that stage begins."""
    for stage in stages:
        process = subprocess.Popen(
            arguments, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stderr is not None
        started = (f"{stage}: started" in line.decode() for line in process.stderr)
        assert any(started), f"no stage {stage}"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def digest(folder: Path) -> dict[str, str]:
    """Returns the sha256 of every file of a dataset."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
