"""The data of the trials on a GPU, made on a CPU: text, phone books, problems, chats, questions.

    python -m benchmarks.trial_data --out FOLDER [--packages FOLDER ... | --text DATASET]
        [--parts FOLDER]

Text is that of the installed packages (and of other folders of packages), curated by
`benchmarks.trial_recipe`; every stage is one of the product's and is not done again. `trial` is the
mixture of FP8 against BF16 and hybrid against Transformer: text, 5% phone books, 3% solved
problems. `base` and `chat` are those of fine-tuning: text with more problems; and conversations of
other problems, solved by program and verified like any trace, of which a share has no reasoning and
another one a reasoning that is cut short, as in Nemotron Nano 2 (arXiv:2508.14444).
`questions.json` holds held-out problems as token ids. With --parts all that a GPU machine needs is
packed to travel, see `trial_parts`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.trial_parts import pack
from flows import stages
from mixtures.chat_template import render
from mixtures.mixture import Mixture, Part
from mixtures.vocabulary import Vocabulary, load_vocabulary
from pipelines.curate import curate
from pipelines.dataset import Dataset
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe, Source
from synth.families import FAMILIES
from synth.math_verifier import MathVerifier
from synth.phonebook_documents import write_phonebook_documents
from synth.problems import Problem, keyed, take
from synth.prompt_layout import ChatLayout, PlainLayout, Reading
from synth.trace_rows import MESSAGE
from synth.verification import judge

VOCABULARY_SIZE = 16_384
SEED = 1
TRIAL_LENGTH, BASE_LENGTH = 2_048, 1_024
TRIAL_SAMPLES = 98_304  # 201 million tokens: to spare for the faster one's run of equal time
BASE_SAMPLES = 131_072
CHAT_SAMPLES = 16_384
PHONEBOOK_SHARE, PROBLEM_SHARE = 0.05, 0.03
BASE_PROBLEM_SHARE = 0.02
CHAT_SEEDS = (1, 2, 3)
BOOKS, BOOK_ENTRIES, BOOK_LOOKUPS = 9_500, (4, 64), 8
PROBLEMS = 20_000
CHATS = {"chain_sum": 12_000, "gcd": 1_500}
STRIPPED_SHARE, TRUNCATED_SHARE = 0.10, 0.05
QUESTIONS = 400


def make_datasets(out: Path, packages: list[str], text: str) -> dict[str, str]:
    """Curates text (unless it is there), phone books and problems; returns their folders."""
    folders = {name: str(out / "datasets" / name) for name in ("text", "phonebook", "problems")}
    if text:
        folders["text"] = text
    else:
        stages.curate(
            "benchmarks.trial_recipe:recipe",
            folders["text"],
            keep_dropped="origin",
            arguments={"also": ",".join(packages)},
        )
    written = out / "written"
    books = written / "phonebook" / "books.jsonl"
    if not books.exists():
        books.parent.mkdir(parents=True, exist_ok=True)
        write_phonebook_documents(books, BOOKS, SEED, BOOK_ENTRIES, BOOK_LOOKUPS)
    stages.problem_documents(str(written / "problems" / "problems.jsonl"), PROBLEMS, SEED, 0.1)
    for name, recipe in (
        ("phonebook", "flows.recipes.phonebook:phonebook"),
        ("problems", "flows.recipes.packages:solved_problems"),
    ):
        stages.curate(recipe, folders[name], (f"{name}={written / name}",))
    return folders


def chats(numbers: dict[str, int]) -> pa.Table:
    """Returns solved problems as conversations, each verified, some without their reasoning.

    Args:
        numbers: how many of each family.

    Raises:
        RuntimeError: a solution does not stand the verification of traces.
    """
    rows: dict[str, list[Any]] = {"text": [], "messages": []}
    with MathVerifier() as verifier:
        for name, number in numbers.items():
            family = FAMILIES[name]
            for problem in take(family, "sft", SEED, number):
                solution = family.solution(problem)
                reading = Reading(solution.reasoning, solution.answer)
                if reason := judge(problem, reading, "stop", verifier).reason:
                    raise RuntimeError(f"{problem.question!r}: its own solution is {reason}")
                answer = {
                    "role": "assistant",
                    "content": solution.answer,
                    "reasoning_content": shown_reasoning(problem, solution.reasoning),
                }
                asked = {"role": "user", "content": problem.question, "reasoning_content": None}
                rows["text"].append(f"{problem.question}\n{solution.reasoning}")
                rows["messages"].append([asked, answer])
    schema = pa.schema([("text", pa.string()), ("messages", pa.list_(MESSAGE))])
    return pa.table(rows, schema)


def shown_reasoning(problem: Problem, reasoning: str) -> str | None:
    """Returns the reasoning, nothing in place of it, or its first words, by share."""
    place = keyed("shown", problem.id) / 2**62
    if place < STRIPPED_SHARE:
        return None
    if place < STRIPPED_SHARE + TRUNCATED_SHARE:
        words = reasoning.split(" ")
        return " ".join(words[: 1 + keyed("cut", problem.id) % max(1, len(words) - 1)])
    return reasoning


def make_chats(out: Path) -> str:
    """Writes the conversations as a dataset; returns its folder."""
    rows, dataset = out / "written" / "chats" / "rows.parquet", out / "datasets" / "chats"
    if not rows.exists():
        rows.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(chats(CHATS), rows)
    recipe = Recipe("trial_chats", (ParquetReader(columns=("messages",)),), ())
    curate(recipe, [Source("chats", str(rows.parent))], dataset)
    return str(dataset)


def make_tokens(out: Path, folders: dict[str, str]) -> dict[str, Any]:
    """Trains the vocabulary and encodes all parts; returns the manifests by part."""
    vocabulary = str(out / "vocabulary")
    read = (folders["text"], folders["problems"], folders["phonebook"])
    stages.train_tokenizer(read, vocabulary, size=VOCABULARY_SIZE, seed=SEED, sample="64MiB")
    return {
        name: stages.tokenize(
            folders[name], vocabulary, str(out / "tokens" / name), messages=name == "chats"
        )
        for name in ("text", "problems", "phonebook", "chats")
    }


def make_mixtures(out: Path) -> dict[str, Any]:
    """Mixes the parts for pretraining and fine-tuning; returns the manifests by mixture."""

    def parts(others: dict[str, float], max_repetition: float) -> tuple[Part, ...]:
        weights = {"text": 1 - sum(others.values())} | others
        return tuple(Part(name, weight, max_repetition) for name, weight in weights.items())

    books = {"phonebook": PHONEBOOK_SHARE, "problems": PROBLEM_SHARE}
    wanted = {
        "trial": (parts(books, 8.0), TRIAL_LENGTH, TRIAL_SAMPLES, SEED),
        "base": (parts({"problems": BASE_PROBLEM_SHARE}, 8.0), BASE_LENGTH, BASE_SAMPLES, SEED),
    }
    for seed in CHAT_SEEDS:
        chat = (Part("chats", 1.0, 1000.0),), BASE_LENGTH, CHAT_SAMPLES, seed
        wanted[f"chat-{seed}"] = chat
    return {
        name: stages.mix(
            Mixture(name.partition("-")[0], of, length, num_samples=samples),
            {part.name: str(out / "tokens" / part.name) for part in of},
            str(out / "mixtures" / name),
            seed,
        )
        for name, (of, length, samples, seed) in wanted.items()
    }


def questions(vocabulary: Vocabulary, number: int) -> list[dict[str, Any]]:
    """Returns held-out problems of each family: ids of the plain prompt, reasoning on and off."""

    def chat(question: str, thinking: bool) -> list[int]:
        ids: list[int] = []
        asked = ChatLayout().prompt(question)["messages"]
        for segment in render(asked, thinking, add_generation_prompt=True):
            if segment.token is None:
                ids += vocabulary.encode_batch([segment.text])[0].tolist()
            else:
                ids.append(segment.token)
        return ids

    found = []
    for name, family in FAMILIES.items():
        for problem in take(family, "heldout", 7, number):
            plain = PlainLayout().prompt(problem.question)["prompt"]
            ids = {
                "plain": vocabulary.encode_batch([plain])[0].tolist(),
                "on": chat(problem.question, True),
                "off": chat(problem.question, False),
            }
            row = {"id": problem.id, "family": name, "question": problem.question}
            found.append(row | {"expected": problem.answer, "ids": ids})
    return found


def about(folders: dict[str, str], tokens: dict[str, Any], mixtures: dict[str, Any]) -> dict:
    """Returns what the results have to say about the data."""
    text = Dataset(folders["text"]).manifest
    return {
        "recipe": "benchmarks.trial_recipe:recipe",
        "recipe_fingerprint": text["recipe"]["fingerprint"],
        "dataset": text["identity"],
        "documents_in": text["documents_in"],
        "kept": text["kept"],
        "bytes_in": text["bytes_in"],
        "bytes_kept": text["bytes_kept"],
        "dropped": {r["name"]: r["dropped"] for r in text["rules"] if r["dropped"]},
        "vocabulary_size": VOCABULARY_SIZE,
        "parts": {
            name: {key: made[key] for key in ("documents", "tokens", "bytes", "fingerprint")}
            for name, made in tokens.items()
        },
        "mixtures": {
            name: {
                "fingerprint": made["fingerprint"],
                "samples": made["num_samples"],
                "sequence_length": made["sequence_length"],
                "table": made["table"],
            }
            for name, made in mixtures.items()
        },
    }


def main() -> None:
    """Writes all folders, `about.json` and, if asked, the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packages", nargs="*", default=[], help="more folders of packages")
    parser.add_argument("--text", default="", help="text that was curated, in place of packages")
    parser.add_argument("--parts", type=Path, help="folder for what is to travel")
    options = parser.parse_args()
    out = options.out
    folders = make_datasets(out, options.packages, options.text) | {"chats": make_chats(out)}
    tokens = make_tokens(out, folders)
    mixtures = make_mixtures(out)
    asked = questions(load_vocabulary(out / "vocabulary"), QUESTIONS)
    (out / "questions.json").write_text(json.dumps(asked))
    found = about(folders, tokens, mixtures)
    (out / "about.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if options.parts:
        names = ("tokens", "mixtures", "vocabulary", "questions.json", "about.json")
        print(json.dumps(pack(out, names, options.parts), indent=1))


if __name__ == "__main__":
    main()
