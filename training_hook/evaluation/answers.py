"""How many held-out problems a model answers rightly: greedy answers, exact scores, an interval."""

from pathlib import Path
from typing import Any

from mixtures.chat_template import render
from mixtures.vocabulary import Vocabulary
from synth.families import FAMILIES
from synth.problems import Problem, take
from synth.prompt_layout import ChatLayout, PlainLayout
from training_hook.evaluation.exact_match import Item
from training_hook.evaluation.share import share
from training_hook.evaluation.trained import Trained, load_trained
from training_hook.generate import generate
from training_hook.model import HybridModel

MAX_TOKENS = 160
EXAMPLES = 6


def evaluate_answers(
    training: str | Path,
    tokenizer: str | Path,
    number: int = 200,
    chat: bool = False,
    seed: int = 7,
    device: str = "",
) -> dict[str, Any]:
    """Asks held-out problems of every family and scores the answers.

    Args:
        training: a checkpoint, or the folder of a run, whose last one is taken.
        tokenizer: folder of its vocabulary.
        number: problems of each family; none of them is in any training text of ours.
        chat: ask through the chat template; else as pretraining text has it.
        seed: of the problems.
        device: "cuda" or "cpu"; a GPU if there is one, where not given.

    Returns:
        `families` (right, asked, accuracy, Wilson's 95% interval), the same for all of them
        together, and `examples`.

    Raises:
        ValueError: there is no checkpoint, it is of another vocabulary, or a family has not as many
            held-out problems.
    """
    return ask_problems(load_trained(training, tokenizer, device), number, chat, seed)


def ask_problems(
    trained: Trained, number: int = 200, chat: bool = False, seed: int = 7
) -> dict[str, Any]:
    """Asks a loaded model; see `evaluate_answers`."""
    model, vocabulary = trained.model, trained.vocabulary
    families: dict[str, Any] = {}
    examples: list[dict[str, Any]] = []
    for name, family in FAMILIES.items():
        problems = take(family, "heldout", seed, number)
        answers = _answers(model, vocabulary, problems, chat)
        right = 0
        for place, (problem, (text, answer)) in enumerate(zip(problems, answers, strict=True)):
            good = answer is not None and family.score(problem, answer) == 1.0
            right += good
            if place < EXAMPLES // len(FAMILIES):
                row = {"family": name, "question": problem.question, "expected": problem.answer}
                examples.append(row | {"text": text, "right": good})
        families[name] = share(right, len(problems))
    total = share(
        sum(f["right"] for f in families.values()), sum(f["asked"] for f in families.values())
    )
    return {"step": trained.step, "chat": chat, **total, "families": families, "examples": examples}


def problem_items(number: int = 200, seed: int = 7) -> list[Item]:
    """Returns the problems that `ask_problems` asks as plain text, as items with their answers."""
    layout = PlainLayout()
    return [
        Item(
            problem.id, layout.prompt(problem.question)["prompt"], problem.answer, {"family": name}
        )
        for name, family in FAMILIES.items()
        for problem in take(family, "heldout", seed, number)
    ]


def _answers(
    model: HybridModel, vocabulary: Vocabulary, problems: list[Problem], chat: bool
) -> list[tuple[str, str | None]]:
    """Returns text and final answer for each problem."""
    stop = list(vocabulary.special_ids.stops)
    prompts = [_prompt(vocabulary, problem.question, chat) for problem in problems]
    layout = ChatLayout() if chat else PlainLayout()
    texts = [vocabulary.decode(ids) for ids in generate(model, prompts, MAX_TOKENS, stop)]
    return [(text, layout.read(text).answer) for text in texts]


def _prompt(vocabulary: Vocabulary, question: str, chat: bool) -> list[int]:
    if not chat:
        return vocabulary.encode_batch([PlainLayout().prompt(question)["prompt"]])[0].tolist()
    ids: list[int] = []
    messages = ChatLayout().prompt(question)["messages"]
    for segment in render(messages, add_generation_prompt=True):
        if segment.token is None:
            ids += vocabulary.encode_batch([segment.text])[0].tolist()
        else:
            ids.append(segment.token)
    return ids
