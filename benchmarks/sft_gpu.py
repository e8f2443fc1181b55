"""Fine-tuning on verified traces: exact answers before and after, reasoning on and off.

    OUT=DIR python -m benchmarks.sft_gpu --data FOLDER --work DIR [--commit HASH] [--seeds 1 2 3]
    OUT=DIR python -m benchmarks.sft_gpu --data FOLDER --work DIR --tiny    (on the CPU)

FOLDER is that of `trial_data`. A base of 25 million parameters is trained on text with 2% solved
problems, a tenth of them wrong, and fine-tuned on conversations of other problems, whose answers
and steps were verified; a seed decides their order. Held-out problems, none of which is in either,
are asked greedily: of the base as its text has them, of the others with reasoning on and off. An
answer is exact if it is the integer and nothing else. An answer obeys the template if it has one
closed reasoning that is not empty and an answer behind it (on), or an answer and no reasoning
(off), and ends. The model of the first seed is left in $OUT in parts, to be asked by transformers
and vLLM (`sft_template`). Runs on one GPU; the same command goes on where it stopped.
"""

import argparse
import gc
import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_steps import find_commit, versions
from benchmarks.trial_parts import WEIGHTS, pack
from benchmarks.trial_results import measured_of
from benchmarks.trial_runs import base, tiny, tuned
from mixtures.chat_template import END_OF_TURN_ID
from mixtures.plan import Plan
from mixtures.vocabulary import Vocabulary, load_vocabulary
from pipelines.progress import say
from synth.prompt_layout import END_THINK, THINK, ChatLayout, PlainLayout
from training_hook.checkpoint import load_weights
from training_hook.device import device_name
from training_hook.evaluation.share import share
from training_hook.export import export
from training_hook.generate import generate
from training_hook.loop import build_model
from training_hook.model import HybridModel
from training_hook.pretrain import pretrain
from training_hook.run import PretrainRun
from training_hook.sft import sft
from training_hook.sft_run import SftRun

MAX_TOKENS = 160
PART_BYTES = 15 << 20
LAYOUTS = {"plain": PlainLayout(), "on": ChatLayout(), "off": ChatLayout()}
EXAMPLES = 3
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def is_exact(expected: str, answer: str | None) -> bool:
    """Says whether an answer is the expected integer, written as nothing but an integer."""
    return bool(answer and _INTEGER.fullmatch(answer) and int(answer) == int(expected))


def obeys(text: str, thinking: bool, ended: bool) -> bool:
    """Says whether what was generated behind the chat prompt is what the template asks for."""
    reading = ChatLayout().read(text)
    if not ended or reading.answer is None or THINK in text:
        return False
    if thinking:
        return text.count(END_THINK) == 1 and bool(reading.reasoning)
    return END_THINK not in text


def asked(
    model: HybridModel, vocabulary: Vocabulary, questions: Sequence[dict[str, Any]], kind: str
) -> dict[str, Any]:
    """Asks a model all questions in one way: plain, or the chat with reasoning on or off."""
    stop = [vocabulary.eos_id, END_OF_TURN_ID]
    prompts = [question["ids"][kind] for question in questions]
    generated = generate(model, prompts, MAX_TOKENS, stop, batch_size=512)
    rows = []
    for question, ids in zip(questions, generated, strict=True):
        text = vocabulary.decode(ids)
        answer = LAYOUTS[kind].read(text).answer
        rows.append(
            {
                "family": question["family"],
                "question": question["question"],
                "expected": question["expected"],
                "text": text,
                "right": is_exact(question["expected"], answer),
                "obeys": kind == "plain" or obeys(text, kind == "on", len(ids) < MAX_TOKENS),
            }
        )
    return summary(rows, kind)


def summary(rows: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Returns shares of right answers, and of those that obey, with Wilson's intervals."""
    families = {
        name: share(sum(row["right"] for row in of), len(of))
        for name in dict.fromkeys(row["family"] for row in rows)
        if (of := [row for row in rows if row["family"] == name])
    }
    found = share(sum(row["right"] for row in rows), len(rows)) | {"families": families}
    if kind != "plain":
        found["obeys"] = share(sum(row["obeys"] for row in rows), len(rows))
    wrong = [row for row in rows if not row["right"]]
    return found | {"examples": list(rows[:EXAMPLES]), "wrong_examples": wrong[:EXAMPLES]}


def last_checkpoint(out: Path) -> Path:
    return out / json.loads((out / "manifest.json").read_text())["checkpoint"]


def load(run: PretrainRun, out: Path, device: torch.device) -> HybridModel:
    """Returns the trained model of a run's folder."""
    model = build_model(run)
    weights = load_weights(last_checkpoint(out))
    model.load_state_dict(weights, strict=not run.model.tie_word_embeddings)
    return model.to(device)


class Study:
    """The stages, each of which is taken as it is where it was done before."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data, self.work = options.data, options.work
        self.device = torch.device("cpu" if options.tiny else "cuda")
        self.vocabulary = load_vocabulary(self.data / "vocabulary")
        self.questions = json.loads((self.data / "questions.json").read_text())
        if options.questions:  # of each family
            families: dict[str, list[dict]] = {}
            for question in self.questions:
                families.setdefault(question["family"], []).append(question)
            self.questions = [q for of in families.values() for q in of[: options.questions]]
        self.base, self.tuned = base(), tuned()
        if options.tiny:
            self._shrink()
        elif options.tokens:
            steps = max(1, options.tokens // self.base.tokens_per_step)
            self.base = self.base.with_steps(steps)
        self.report: dict[str, Any] = {}
        self.out = Path(os.environ.get("OUT", "."))

    def _shrink(self) -> None:
        plan = Plan(self.data / "mixtures" / "base")
        size, length = plan.manifest["vocabulary_size"], plan.sequence_length
        model = replace(self.base.model, vocab_size=size)
        self.base = tiny(replace(self.base, model=model, sequence_length=length))
        self.tuned = replace(
            self.tuned,
            model=self.base.model,
            sequence_length=length,
            batch_size=4,
            micro_batch_size=4,
            total_tokens=12 * 4 * length,
            precision="float32",
            backend="eager",
            plain_first_layers=1,
            plain_last_layers=1,
            evaluation_tokens=2_000,
        )

    def pretrained(self) -> None:
        """Trains the base and asks it."""
        out = self.work / "base"
        pretrain(self.base, self.data / "mixtures" / "base", out, device=self.device.type)
        self.report["base"] = measured_of(out)
        self.report["before"] = self._ask(self.base, out, ("plain",))["plain"]
        self._write()

    def fine_tuned(self, seed: int) -> None:
        """Fine-tunes the base on conversations in one order and asks the result."""
        run: SftRun = replace(self.tuned, name=f"{self.tuned.name}_{seed}")
        out, mixture = self.work / f"sft-{seed}", self.data / "mixtures" / f"chat-{seed}"
        summary = sft(run, mixture, self.work / "base", out, device=self.device.type)
        kept = ("tokens", "seconds", "tokens_per_second", "held_out_loss", "mixture")
        found = {key: summary[key] for key in kept} | self._ask(run, out, ("on", "off"))
        self.report.setdefault("after", {})[str(seed)] = found
        self._compare()
        self._write()

    def _ask(self, run: PretrainRun, out: Path, kinds: Sequence[str]) -> dict[str, Any]:
        note = out / "answers.json"
        if not note.exists():
            model = load(run, out, self.device)
            found = {kind: asked(model, self.vocabulary, self.questions, kind) for kind in kinds}
            note.write_text(json.dumps(found))
            del model
            gc.collect()
        found = json.loads(note.read_text())
        for kind in kinds:
            obeyed = found[kind].get("obeys", {}).get("accuracy")
            say(f"{run.name} {kind}: {found[kind]['accuracy']:.1%} right, obeys {obeyed}")
        return found

    def _compare(self) -> None:
        before = self.report["before"]["accuracy"]
        for kind in ("on", "off"):
            after = [found[kind]["accuracy"] for found in self.report["after"].values()]
            self.report[f"gain_{kind}"] = {
                "before": before,
                "after": after,
                "mean": statistics.fmean(after) - before,
                "sd_over_seeds": statistics.stdev(after) if len(after) > 1 else None,
            }

    def exported(self, seed: int) -> None:
        """Leaves the model of a seed in parts beside the report."""
        out, folder = self.work / f"sft-{seed}", self.work / "model"
        prompts = [
            question["ids"][kind] for question in self.questions[:2] for kind in ("on", "off")
        ]
        export(
            load_weights(last_checkpoint(out)),
            self.tuned.model,
            self.vocabulary,
            folder,
            prompts,
            dtype=torch.bfloat16,
        )
        note = pack(self.work, ["model"], self.out, PART_BYTES, WEIGHTS)
        self.report["model_parts"] = len(note["parts"])
        self._write()

    def _write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "sft_gpu.json").write_text(json.dumps(self.report, indent=1) + "\n")


def main() -> int:
    """Writes $OUT/sft_gpu.json and $OUT/part1 ..., and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of trial_data")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tokens", type=int, help="of the base; 65.5 million if not given")
    parser.add_argument("--questions", type=int, help="of each family; all if not given")
    parser.add_argument("--commit", help="commit of this tree, where git cannot be asked")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU")
    options = parser.parse_args()
    study = Study(options)
    about = options.data / "about.json"
    study.report = {
        "what": "exact answers to held-out problems before and after fine-tuning",
        "commit": find_commit(options.commit),
        "device": device_name(study.device),
        "versions": versions(),
        "questions": len(study.questions),
        "max_tokens": MAX_TOKENS,
        "data": json.loads(about.read_text()) if about.exists() else None,
    }
    study.pretrained()
    for seed in options.seeds:
        study.fine_tuned(seed)
    study.exported(options.seeds[0])
    say(f"written: {study.out / 'sft_gpu.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
