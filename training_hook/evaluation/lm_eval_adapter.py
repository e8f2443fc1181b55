"""Our checkpoints in lm-evaluation-harness, through its own API: any of its tasks, and ours.

    python -m training_hook.evaluation.lm_eval_adapter runs/tiny --tokenizer tokenizer \
        --task gristmill_phonebook_16 --include items

It gives what lm_eval's own class for transformers gives of the exported folder. A text without a
context is scored behind `</s>`, as any server would and unlike `bits_per_byte`, where, as in
training, that token is a document of its own. Needs the extra `lm-eval`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pipelines.dataset import write_json
from pipelines.progress import say
from training_hook.evaluation.exact_match import BATCH_TOKENS, EncodedItem, match_items
from training_hook.evaluation.trained import Trained, load_trained
from training_hook.generate import generate

Pair = tuple[Any, list[int], list[int]]
"""Texts, for a cache, and the tokens of context and continuation."""


class CheckpointLM(TemplateLM):
    """A loaded checkpoint as lm_eval's language model; one process, greedy decoding."""

    def __init__(self, trained: Trained, batch_tokens: int = BATCH_TOKENS) -> None:
        super().__init__()
        self.trained = trained
        self.batch_tokens = batch_tokens

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a document."""
        return self.trained.vocabulary.eos_id

    @property
    def max_length(self) -> int:
        """Longest input: that of training."""
        return self.trained.sequence_length

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the ids of a text; special tokens are never added."""
        return self.trained.vocabulary.encode_batch([string])[0].tolist()

    def _loglikelihood_tokens(
        self, requests: list[Pair], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Scores continuations; the beginning of a context that is too long is left out."""
        items = []
        for _, context, continuation in requests:
            tokens = np.array((context + continuation)[-self.max_length - 1 :], np.int64)
            if not 0 < len(continuation) < len(tokens):
                raise ValueError(
                    f"lm_eval: a continuation has {len(continuation)} tokens; wanted 1 to "
                    f"{self.max_length}, the length of training, behind a context"
                )
            items.append(EncodedItem(tokens, len(tokens) - len(continuation)))
        matches = match_items(self.trained.model, items, self.batch_tokens) if items else []
        return [(match.log_likelihood, match.exact) for match in matches]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-likelihood of whole texts, in windows that know one token before."""
        pairs: list[Pair] = []
        ends = []
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
            pairs += [(None, *make_disjoint_window(window)) for window in windows]
            ends.append(len(pairs))
        found = np.array([score for score, _ in self._loglikelihood_tokens(pairs)])
        starts = [0, *ends[:-1]]
        return [float(found[a:b].sum()) for a, b in zip(starts, ends, strict=True)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns greedy continuations up to the first stop text.

        Raises:
            ValueError: a task wants samples.
        """
        vocabulary = self.trained.vocabulary
        by_length: dict[int, list[int]] = {}
        stops: list[list[str]] = []
        prompts: list[list[int]] = []
        for number, request in enumerate(requests):
            arguments: Any = request.args
            context, given = arguments
            wanted: dict[str, Any] = dict(normalize_gen_kwargs(given))
            if wanted["do_sample"]:
                raise ValueError("lm_eval: a task wants samples; this model decodes greedily only")
            length = wanted["max_gen_toks"]
            room = self.max_length - length
            if room < 1:
                raise ValueError(
                    f"lm_eval: a task wants {length} new tokens; the model was trained on "
                    f"sequences of {self.max_length}. Give the task a smaller max_gen_toks"
                )
            prompts.append((self.tok_encode(context) or [self.eot_token_id])[-room:])
            stops.append(wanted["until"])
            by_length.setdefault(length, []).append(number)
        texts = [""] * len(requests)
        for length, numbers in by_length.items():
            chosen = [prompts[number] for number in numbers]
            stop = list(vocabulary.special_ids.stops)
            found = generate(self.trained.model, chosen, length, stop)
            for number, ids in zip(numbers, found, strict=True):
                texts[number] = _until(vocabulary.decode(ids), stops[number])
        return texts


def _until(text: str, stops: Sequence[str]) -> str:
    """Returns a text up to the first of its stop texts."""
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text


def run_lm_eval(
    trained: Trained, tasks: Sequence[str], include: Path | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Runs lm_eval's tasks over a checkpoint.

    Args:
        trained: the model.
        tasks: names of lm_eval's or of those in `include`; patterns with * too.
        include: folder that `lm_eval_files` wrote.
        limit: items of each task; all if None.

    Returns:
        `step`, and of lm_eval's result `results`, `versions`, `n-samples`.

    Raises:
        ValueError: no task has such a name.
    """
    own = include is not None and all(task.startswith("gristmill_") for task in tasks)
    # indexing lm_eval's own 14,000 files takes many seconds
    manager = TaskManager(include_path=include and str(include), include_defaults=not own)
    names = []
    for task in tasks:
        matched = manager.match_tasks([task])
        if not matched:
            raise ValueError(f"lm_eval: no task is called {task}; is its folder not included?")
        names += matched
    found = simple_evaluate(
        model=CheckpointLM(trained),
        tasks=names,
        task_manager=manager,
        limit=limit,
        log_samples=False,
        bootstrap_iters=0,
    )
    assert found is not None  # None is for other ranks than the first
    result: dict[str, Any] = dict(found)
    kept = {key: result[key] for key in ("results", "versions", "n-samples")}
    return {"step": trained.step, **kept}


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m training_hook.evaluation.lm_eval_adapter`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training_hook.evaluation.lm_eval_adapter",
        description="Runs tasks of lm-evaluation-harness over a checkpoint.",
    )
    parser.add_argument("training", type=Path, help="folder of a run or of a checkpoint")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of its vocabulary")
    parser.add_argument("--task", action="append", required=True, help="lm_eval's name of a task")
    parser.add_argument("--include", type=Path, help="folder with task files of ours")
    parser.add_argument("--limit", type=int, help="items of each task; all if not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="", help="default: a GPU")
    parser.add_argument("--out", type=Path, help="file to write the result to, JSON")
    given = parser.parse_args(arguments)
    try:
        trained = load_trained(given.training, given.tokenizer, given.device)
        result = run_lm_eval(trained, given.task, given.include, given.limit)
    except (ValueError, OSError) as error:
        say(f"lm_eval: failed: {error}")
        return 1
    if given.out:
        write_json(given.out, result)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
