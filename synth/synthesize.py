"""Verified reasoning traces: problems, n answers to each, verdicts, a dataset.

Answers go to a journal first, so a run that was killed goes on by the same command and asks for
nothing twice; verification and files come from the journal alone.
"""

import shutil
from pathlib import Path
from typing import Any

from pipelines.atomic import sweep
from pipelines.dataset import MANIFEST, WORK, Dataset, write_json
from pipelines.output_folder import check_output, locked
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
    check_output(out, recipe.name, mark, frozenset({JOURNAL}))
    if (out / MANIFEST).is_file():
        say(f"{out} is finished already, with the same recipe and model; nothing to do")
        return Dataset(out).manifest
    (out / WORK / mark[:32]).mkdir(parents=True, exist_ok=True)
    with locked(out), Journal(out / JOURNAL) as journal:
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
