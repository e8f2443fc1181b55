"""Verified reasoning traces: problems, n answers to each, verdicts, a dataset.

Answers go to a journal first, so a run that was killed goes on by the same command and asks for
nothing twice; verification and files come from the journal alone.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.atomic import sweep
from pipelines.dataset import MANIFEST, WORK, Dataset, write_json
from pipelines.progress import say
from pipelines.recipe import fingerprint
from synth.engine import ClientSettings, generate, missing
from synth.journal import Journal
from synth.recipe import SynthRecipe
from synth.sampling import Request
from synth.served_model import find_model, model_revision
from synth.server import ServerSettings, serving
from synth.traces import traces, write_traces

JOURNAL = "journal.jsonl"
"""In the dataset's folder, but no part of the dataset: its lines are in the order of arrival."""


def synthesize(
    recipe: SynthRecipe,
    model: str,
    out: str | Path,
    client: ClientSettings | None = None,
    server: ServerSettings | None = None,
) -> dict[str, Any]:
    """Generates, verifies and writes the traces of a recipe; returns the dataset's manifest.

    A finished dataset of the same recipe and model is returned as it is; an unfinished one is
    continued, and what its journal holds is not asked again.

    Args:
        recipe: what is wanted.
        model: URL of a server that `gristmill serve` started, or a Hugging Face folder, for which
            a server is started as long as it is needed.
        out: folder of the dataset.
        client: how to ask.
        server: how to serve a folder.

    Raises:
        ValueError: `out` holds something else, the server does not say what it serves, or the
            families have not as many problems.
        RuntimeError: the server failed, or too few traces are accepted; the answers are kept.
        OSError: the server does not answer, or writing failed.
    """
    out, is_url = Path(out), model.startswith(("http://", "https://"))
    revision = find_model(model).revision if is_url else model_revision(Path(model))
    identity = recipe.identity(revision)
    mark = fingerprint(identity)
    _check_out(out, recipe, mark)
    if (out / MANIFEST).is_file():
        say(f"{out} is finished already, with the same recipe and model; nothing to do")
        return Dataset(out).manifest
    with _locked(out, mark), Journal(out / JOURNAL) as journal:
        sweep(out)
        say(f"synth {recipe.name}: choosing problems")
        problems = recipe.problems()
        requests = list(recipe.requests(problems, revision))
        left = len(missing(requests, journal))
        say(f"synth {recipe.name}: {len(requests)} answers wanted, {left} of them not yet there")
        if left:
            _generate(recipe, requests, model, journal, client, server)
        found = traces(recipe, problems, requests, journal)
        manifest = write_traces(recipe, out, found)
        manifest |= {"recipe": {"fingerprint": mark} | identity}
        write_json(out / MANIFEST, manifest)
        shutil.rmtree(out / WORK)
    return Dataset(out).manifest


def _generate(
    recipe: SynthRecipe,
    requests: list[Request],
    model: str,
    journal: Journal,
    client: ClientSettings | None,
    server: ServerSettings | None,
) -> None:
    if model.startswith(("http://", "https://")):
        generate(requests, recipe.layout, find_model(model), journal, client)
        return
    with serving(Path(model), server) as running:
        generate(requests, recipe.layout, running, journal, client, running.check)


def _check_out(out: Path, recipe: SynthRecipe, mark: str) -> None:
    """Refuses a folder that holds anything but this recipe's dataset or unfinished run."""
    if (out / MANIFEST).is_file():
        held = Dataset(out)
        if held.fingerprint != mark:
            raise ValueError(
                f"{out} holds a dataset of recipe {held.manifest['recipe']['name']} with "
                f"fingerprint {held.fingerprint[:12]}; this one is {recipe.name} with {mark[:12]}. "
                f"Give another --out, or remove the folder."
            )
    elif (out / WORK).is_dir():
        runs = [path.name for path in (out / WORK).iterdir() if path.is_dir()]
        if any(run != mark[:32] for run in runs):
            raise ValueError(
                f"{out} holds an unfinished run with fingerprint {runs[0][:12]}; this one is "
                f"{recipe.name} with {mark[:12]}. Give another --out, or remove {out / WORK}: the "
                f"journal stays, and what it can answer is not asked again."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if names != {JOURNAL}:
            raise ValueError(f"{out} exists and is no dataset. Give a new folder as --out.")


@contextmanager
def _locked(out: Path, mark: str) -> Iterator[None]:
    """Keeps a second run out of the folder; the lock dies with the process."""
    (out / WORK / mark[:32]).mkdir(parents=True, exist_ok=True)
    with (out / WORK / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing to {out}; wait for it or stop it") from error
        yield
