"""The whole wheel: from raw text to a model that helped to make its own fine-tuning data.

A turn is a list of stages, each a plain function of flows.stages with a folder of its own in the
run's folder. A stage that is finished is not done again, so the same command goes on where it
stopped.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import stages
from pipelines.dataset import write_json
from pipelines.load import load
from pipelines.progress import say

WHEEL = "wheel.json"

# What a wheel's summary keeps of each stage's result.
SUMMARY = {
    "curate": ("documents_in", "kept", "dropped", "bytes_in", "bytes_kept"),
    "classify": ("counts", "labels", "metrics"),
    "problem_documents": ("documents", "wrong_share", "bytes"),
    "train_tokenizer": ("size",),
    "tokenize": ("documents", "tokens", "bytes"),
    "mix": ("num_samples",),
    "pretrain": ("status", "parameters", "step", "tokens", "tokens_per_second", "bits_per_byte"),
    "export": ("step",),
    "synth": ("documents_in", "kept", "dropped"),
    "sft": ("status", "step", "tokens", "tokens_per_second", "held_out_loss"),
    "evaluate": ("right", "asked", "accuracy", "interval"),
}

PROBLEMS = "problems"
TRACES = "traces"


@dataclass(frozen=True)
class Part:
    """A part of the training mixture: the documents of some kinds, and their token share."""

    name: str
    kinds: tuple[str, ...]
    """Values of the dataset's column `kind`."""
    weight: float
    sample: float = 1.0
    """Share of these documents that is tokenized."""
    max_repetition: float = 4.0
    """Above this many epochs repeated data is worth much less (Muennighoff et al. 2023)."""


@dataclass(frozen=True)
class Problems:
    """The part of the training mixture that is generated: solved problems, some of them wrong."""

    num_documents: int
    wrong_share: float
    weight: float
    recipe: str
    """Curates them, module:function."""


@dataclass(frozen=True)
class Wheel:
    """From raw text to a fine-tuned model; functions are named as module:function."""

    name: str
    recipe: str
    """Curates; its parameter `classifier` is the folder of the quality classifier."""
    labels: str
    """What the classifier is trained on, module:name of a PathLabels."""
    label_sample: float
    """Share of the documents that is curated first, to label and train on."""
    parts: tuple[Part, ...]
    problems: Problems
    run: str
    """The pretraining run; vocabulary size, length and tokens follow from it."""
    traces: str
    """What is sampled from the pretrained model, a SynthRecipe."""
    sft: str
    """The fine-tuning run."""
    num_heldout: int
    """Held-out problems of each family that are asked before and after fine-tuning."""
    seed: int


Call = Callable[..., dict[str, Any]]


def flywheel(
    recipe: str,
    out: str,
    sources: tuple[str, ...] = (),
    workers: int = 0,
    memory: str = "8GiB",
    call: Call | None = None,
) -> dict[str, Any]:
    """Turns the whole wheel, stage after stage; a stage that is finished is not done again.

    Args:
        recipe: `module:function` that returns a Wheel.
        out: folder of the run; every stage has its own folder in it.
        sources: what to curate instead of the recipe's own sources.
        workers: processes of the stages that use several.
        memory: for curation.
        call: runs a stage by name; the Prefect flow runs it as a task.

    Returns:
        `stages` with seconds and results, and `folders`, as written to wheel.json.
    """
    wheel = load(recipe, "flywheel", Wheel)
    turn = _Turn(wheel, Path(out), call or _call)
    settings = {"sources": sources, "workers": workers, "memory": memory}
    _curate(wheel, turn, settings)
    _pretrain(wheel, turn, workers)
    _fine_tune(wheel, turn, workers)
    summary = {"stages": turn.stages, "folders": turn.folders}
    return summary | {"report": stages.report(out)["report"]}


class _Turn:
    """Runs the stages of a wheel, names each before it starts and records what came of it."""

    def __init__(self, wheel: Wheel, folder: Path, call: Call) -> None:
        self._wheel, self._folder, self._call = wheel, folder, call
        self.stages: list[dict[str, Any]] = []
        self.folders: dict[str, Any] = {}
        self._summary = folder / WHEEL
        self._earlier = []
        if self._summary.exists():
            self._earlier = json.loads(self._summary.read_text("utf-8"))["stages"]
        self._count = 17 + len(wheel.parts)

    def place(self, name: str) -> str:
        """Returns a folder of the run by name, and remembers that there is one."""
        self.folders[name] = name
        return str(self._folder / name)

    def __call__(self, stage: str, what: str, **arguments: Any) -> dict[str, Any]:
        """Runs a stage; `what` says for the reader what it does and how long it takes."""
        start, number = time.monotonic(), len(self.stages)
        say(f"[{number + 1}/{self._count}] {stage}: {what}")
        result = self._call(stage, **arguments)
        done = {"name": stage, "what": what, "seconds": round(time.monotonic() - start, 1)}
        done["result"] = {key: result[key] for key in SUMMARY[stage] if key in result}
        before = self._earlier[number] if number < len(self._earlier) else {}
        if before.get("result") == done["result"]:  # it was done already: its own time counts
            done = before
        self.stages.append(done)
        summary = {"recipe": self._wheel.name, "stages": self.stages, "folders": self.folders}
        write_json(self._summary, summary)
        if result.get("status", "finished") != "finished":
            raise RuntimeError(f"{stage} was stopped; run the same command again to continue")
        return result


def _curate(wheel: Wheel, turn: _Turn, settings: dict[str, Any]) -> None:
    """Curates a sample, trains the classifier on it, and curates everything with it."""
    sample, classifier, dataset = (turn.place(n) for n in ("sample", "classifier", "dataset"))
    share = f"{wheel.label_sample:.0%} of the documents, for the classifier (half a minute)"
    turn("curate", share, recipe=wheel.recipe, out=sample, sample=wheel.label_sample, **settings)
    what = "label by path and train the quality classifier (half a minute)"
    turn("classify", what, dataset=sample, labels=wheel.labels, out=classifier, seed=wheel.seed)
    turn(
        "curate",
        "all documents: language, quality, classifier, duplicates (two minutes)",
        recipe=wheel.recipe,
        out=dataset,
        arguments={"classifier": classifier},
        **settings,
    )
    problems = wheel.problems
    written = turn.place("problem-documents")
    turn(
        "problem_documents",
        f"{problems.num_documents:,} solved problems, {problems.wrong_share:.0%} wrong (seconds)",
        out=str(Path(written) / "problems.jsonl"),
        num_documents=problems.num_documents,
        seed=wheel.seed,
        wrong_share=problems.wrong_share,
    )
    settings = settings | {"sources": (f"problems={written}",)}
    what = "the solved problems (seconds)"
    turn("curate", what, recipe=problems.recipe, out=turn.place(PROBLEMS), **settings)


def _pretrain(wheel: Wheel, turn: _Turn, workers: int) -> None:
    """Trains a vocabulary, tokenizes, mixes, pretrains and exports."""
    from mixtures.mixture import Mixture
    from mixtures.mixture import Part as MixturePart
    from training_hook.run import PretrainRun

    run = load(wheel.run, "run", PretrainRun)
    dataset, problems = turn.place("dataset"), turn.place(PROBLEMS)
    tokenizer, training = turn.place("tokenizer"), turn.place("training")
    turn(
        "train_tokenizer",
        f"{run.model.vocab_size:,} ids, digits apart (half a minute)",
        datasets=(dataset, problems),
        out=tokenizer,
        size=run.model.vocab_size,
        seed=wheel.seed,
        sample="24MiB",
    )
    tokens: dict[str, str] = {}
    names = {**{part.name: f"tokens/{part.name}" for part in wheel.parts}}
    names[PROBLEMS] = f"tokens/{PROBLEMS}"
    turn.folders["tokens"] = names
    root = Path(tokenizer).parent
    for part in wheel.parts:
        tokens[part.name] = str(root / names[part.name])
        turn(
            "tokenize",
            f"{part.name} (seconds)",
            dataset=dataset,
            tokenizer=tokenizer,
            out=tokens[part.name],
            where={"kind": list(part.kinds)},
            sample=part.sample,
            workers=workers,
        )
    tokens[PROBLEMS] = str(root / names[PROBLEMS])
    turn(
        "tokenize",
        "problems (seconds)",
        dataset=problems,
        tokenizer=tokenizer,
        out=tokens[PROBLEMS],
        workers=workers,
    )
    parts = [MixturePart(p.name, p.weight, p.max_repetition) for p in wheel.parts]
    parts.append(MixturePart(PROBLEMS, wheel.problems.weight, 4.0))
    samples = run.total_samples
    mixture = Mixture(wheel.name, tuple(parts), run.sequence_length, num_samples=samples)
    what = f"{samples:,} samples of {run.sequence_length} tokens (seconds)"
    mixed = turn.place("mixture")
    turn("mix", what, mixture=mixture, parts=tokens, out=mixed, seed=wheel.seed)
    turn(
        "pretrain",
        f"{run.name}, {run.total_tokens:,} tokens (eight minutes on two cores)",
        run=wheel.run,
        mixture=mixed,
        out=training,
        tokenizer=tokenizer,
    )
    model = turn.place("model")
    turn("export", "for vLLM", training=training, tokenizer=tokenizer, out=model)


def _fine_tune(wheel: Wheel, turn: _Turn, workers: int) -> None:
    """Samples and verifies traces, fine-tunes the model on them, and asks it before and after."""
    from mixtures.mixture import Mixture, Part
    from training_hook.sft_run import SftRun

    run = load(wheel.sft, "run", SftRun)
    tokenizer, training, model = (turn.place(n) for n in ("tokenizer", "training", "model"))
    traces, tuned = turn.place(TRACES), turn.place("sft")
    what = (
        "vLLM serves the model and answers problems, each answer is verified (three minutes; "
        "the first time two more, to install vLLM beside)"
    )
    turn("synth", what, recipe=wheel.traces, model=model, out=traces)
    tokens, mixed = turn.place("tokens-sft"), turn.place("mixture-sft")
    turn(
        "tokenize",
        "the accepted traces (seconds)",
        dataset=traces,
        tokenizer=tokenizer,
        out=tokens,
        workers=workers,
        messages=True,
    )
    samples = run.total_samples
    part = (Part(TRACES, 1.0, max_repetition=1000.0),)  # the schedule's length is the run's
    mixture = Mixture(f"{wheel.name}-{TRACES}", part, run.sequence_length, num_samples=samples)
    turn("mix", "the traces", mixture=mixture, parts={TRACES: tokens}, out=mixed, seed=wheel.seed)
    turn(
        "sft",
        f"{run.name}, {run.total_tokens:,} tokens (two minutes)",
        run=wheel.sft,
        mixture=mixed,
        start=training,
        out=tuned,
        tokenizer=tokenizer,
    )
    exported = turn.place("model-sft")
    turn("export", "the fine-tuned model", training=tuned, tokenizer=tokenizer, out=exported)
    for name, folder, chat in (("before", training, False), ("after", tuned, True)):
        out = str(Path(turn.place("answers")) / f"{name}.json")
        what = f"{wheel.num_heldout} held-out problems of each family, {name} fine-tuning (seconds)"
        turn(
            "evaluate",
            what,
            training=folder,
            tokenizer=tokenizer,
            out=out,
            number=wheel.num_heldout,
            chat=chat,
        )


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    return getattr(stages, name)(**arguments)
