"""Tasks by name, asked of a checkpoint: `gristmill evaluate --task`, also without flows.

`python -m training_hook.evaluation.tasks` needs what training needs, and tokenizers and
sentencepiece; `arithmetic` needs reasoning-gym besides.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtures.plan import Plan
from pipelines.dataset import write_json
from pipelines.progress import progress, say
from training_hook.evaluation.bits_per_byte import evaluate, held_out_documents, total_score
from training_hook.evaluation.exact_match import BATCH_TOKENS, score_items
from training_hook.evaluation.groups import grouped
from training_hook.evaluation.lm_eval_files import write_lm_eval_files
from training_hook.evaluation.needle import Needle, needle_items
from training_hook.evaluation.phonebook import Phonebook, phonebook_items
from training_hook.evaluation.trained import Trained, load_trained

SIZED = ("phonebook", "needle")
TASKS = (*SIZED, "arithmetic", "bits_per_byte")
_TASK = re.compile(r"([a-z_]+)(?::(\d+(?:,\d+)*))?")


@dataclass(frozen=True)
class Settings:
    """What the tasks need beside the model."""

    mixture: str = ""
    """Folder of the mixture whose held-out documents `needle` and `bits_per_byte` take."""
    by: str = ""
    """Column that `bits_per_byte` goes by; the mixture's parts where not given."""
    datasets: tuple[str, ...] = ()
    """Folders of the curated datasets that have the column."""
    problems: int = 200
    """Of each family, for `arithmetic`."""
    chat: bool = False
    """Ask `arithmetic` through the chat template."""
    lm_eval: str = ""
    """Folder to which the items go, too, as tasks of lm-evaluation-harness."""


def parse_task(text: str) -> tuple[str, tuple[int, ...]]:
    """Reads a task such as "needle" or "phonebook:8,16": its name and sizes.

    Raises:
        ValueError: there is no such task, or it has no sizes.
    """
    match = _TASK.fullmatch(text)
    if not match or match[1] not in TASKS or (match[2] and match[1] not in SIZED):
        raise ValueError(
            f"task {text!r} is unknown; tasks: {', '.join(TASKS)}; sizes may follow those of "
            f"{' and '.join(SIZED)}, for example phonebook:8,16 (entries) or needle:512 (tokens)"
        )
    return match[1], tuple(int(size) for size in match[2].split(",")) if match[2] else ()


def evaluate_tasks(
    training: str | Path,
    tokenizer: str | Path,
    tasks: Sequence[str],
    settings: Settings,
    device: str = "",
) -> dict[str, Any]:
    """Asks a checkpoint the named tasks.

    Args:
        training: folder of a run or of a checkpoint.
        tokenizer: folder of its vocabulary.
        tasks: see `parse_task`.
        settings: what they need.
        device: "cuda" or "cpu"; a GPU if there is one, where not given.

    Returns:
        `step`, `sequence_length` and `tasks`, the result of each by its name.

    Raises:
        ValueError: a task is unknown or lacks a setting, the tokenizer is another one, or an item
            is longer than the sequences that were trained on.
    """
    parsed = [parse_task(task) for task in tasks]
    for name, _ in parsed:
        if name in ("needle", "bits_per_byte") and not settings.mixture:
            raise ValueError(f"{name}: takes held-out documents; give the mixture's folder")
    if bool(settings.by) != bool(settings.datasets):
        raise ValueError("evaluate: a column and the datasets that have it are given together")
    trained = load_trained(training, tokenizer, device)
    if settings.mixture:
        check_mixture(trained, Path(settings.mixture))
    found: dict[str, Any] = {}
    for name, sizes in parsed:
        with progress(f"evaluate {name}", 0, "item") as bar:
            found[name] = _ask(name, sizes, trained, settings, bar.advance)
    return {"step": trained.step, "sequence_length": trained.sequence_length, "tasks": found}


def check_mixture(trained: Trained, mixture: Path) -> None:
    """Checks that a mixture has the model's vocabulary; says so if it is not the model's own.

    Raises:
        ValueError: it has another one.
    """
    plan = Plan(mixture)
    if plan.manifest["vocabulary"] != trained.vocabulary.fingerprint:
        raise ValueError(
            f"evaluate: {mixture} is of the vocabulary {plan.manifest['vocabulary'][:12]}, the "
            f"model of {trained.vocabulary.fingerprint[:12]}"
        )
    if plan.fingerprint != trained.mixture:
        say(
            f"evaluate: the model was trained on another mixture than {mixture} and may have seen "
            "what that one holds out"
        )


def _ask(
    name: str,
    sizes: tuple[int, ...],
    trained: Trained,
    settings: Settings,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    model, vocabulary, length = trained.model, trained.vocabulary, trained.sequence_length
    if name == "bits_per_byte":
        return score_bits_per_byte(trained, settings, advance)
    if name == "arithmetic":
        from training_hook.evaluation.answers import (  # loads reasoning-gym: 5 s
            ask_problems,
            problem_items,
        )

        if settings.lm_eval:
            write_lm_eval_files(Path(settings.lm_eval), name, problem_items(settings.problems))
        return ask_problems(trained, settings.problems, settings.chat)
    if name == "phonebook":
        items = phonebook_items(vocabulary, length, Phonebook(sizes))
    else:
        items = needle_items(vocabulary, length, Needle(sizes), Path(settings.mixture))
    if settings.lm_eval:
        write_lm_eval_files(Path(settings.lm_eval), name, items)
    return score_items(model, vocabulary, items, advance=advance)


def score_bits_per_byte(
    trained: Trained, settings: Settings, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Scores held-out documents as the run's own evaluation does, by part or by a column.

    Returns:
        `total` and `groups`: part, documents, tokens, bytes, nats, bits_per_byte.
    """
    mixture = Path(settings.mixture)
    documents = held_out_documents(mixture, trained.evaluation_tokens)
    if settings.by:
        documents = grouped(documents, [Path(folder) for folder in settings.datasets], settings.by)
    length, end = trained.sequence_length, trained.vocabulary.eos_id
    rows = max(1, BATCH_TOKENS // length)
    scores = evaluate(trained.model, documents, length, rows, end, advance)
    by = settings.by or "part"
    return {
        "by": by,
        "total": total_score(scores).row(),
        "groups": [score.row() for score in scores],
    }


def describe(result: dict[str, Any]) -> str:
    """Returns the results as lines for a terminal."""
    lines = []
    for name, task in result["tasks"].items():
        if name == "bits_per_byte":
            rows = [*task["groups"], task["total"]]
            lines += [f"{name}  {row['part']}: {row['bits_per_byte']:.4f}" for row in rows]
            continue
        groups = task.get("groups") or [
            {"family": family, **scored} for family, scored in task["families"].items()
        ]
        for group in groups:
            labels = [
                f"{key} {group[key]}"
                for key in ("entries", "length", "depth", "family")
                if key in group
            ]
            low, high = group["interval"]
            lines.append(
                f"{name}  {', '.join(labels)}: {group['accuracy']:.1%} of {group['asked']} "
                f"({low:.1%} to {high:.1%})"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m training_hook.evaluation.tasks`; returns the exit code."""
    prog = "python -m training_hook.evaluation.tasks"
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Asks a checkpoint tasks with exact answers.",
        epilog=f"example: {prog} runs/tiny --tokenizer tokenizer --task phonebook:8,16",
    )
    parser.add_argument("training", type=Path, help="folder of a run or of a checkpoint")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of its vocabulary")
    parser.add_argument("--task", action="append", required=True, help=f"of {', '.join(TASKS)}")
    parser.add_argument("--mixture", default="", help="whose held-out documents are taken")
    parser.add_argument("--by", default="", help="column for bits_per_byte")
    parser.add_argument("--dataset", action="append", default=[], help="that has the column")
    parser.add_argument("--problems", type=int, default=200, help="of each family, for arithmetic")
    parser.add_argument("--chat", action="store_true", help="arithmetic by the chat template")
    parser.add_argument("--lm-eval", default="", help="folder for the items as lm_eval tasks")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="", help="default: a GPU")
    parser.add_argument("--out", type=Path, help="file to write the result to, JSON")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    given = parser.parse_args(arguments)
    settings = Settings(
        given.mixture,
        given.by,
        tuple(given.dataset),
        given.problems,
        given.chat,
        given.lm_eval,
    )
    try:
        result = evaluate_tasks(given.training, given.tokenizer, given.task, settings, given.device)
    except (ValueError, OSError, FloatingPointError) as error:
        say(f"evaluate: failed: {error}")
        return 1
    if given.out:
        write_json(given.out, result)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        say(describe(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
