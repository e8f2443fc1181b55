"""What the scripts of trials have in common: their options, their place and their report."""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_steps import find_commit, versions
from benchmarks.trial_queue import Place, Trial
from benchmarks.trial_results import HEADLINE, measured
from benchmarks.trial_runs import tiny
from mixtures.plan import Plan
from training_hook.carry_out import check_fit
from training_hook.run import PretrainRun

RATES = "rates.json"


def trial_parser(about: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that every script of trials takes."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixture", type=Path, required=True, help="folder of `gristmill mix`")
    parser.add_argument("--vocabulary", type=Path, help="its vocabulary, to ask for phone books")
    parser.add_argument("--about", type=Path, help="about.json of trial_data, for the report")
    parser.add_argument("--work", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--tokens", type=int, help="of each run; 100.7 million if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--commit", help="commit of this tree, where git cannot be asked")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU")
    return parser


def place_of(options: argparse.Namespace) -> Place:
    gpus = 0 if options.tiny else options.gpus
    return Place(options.work, options.mixture, gpus, options.vocabulary)


def fitted(run: PretrainRun, options: argparse.Namespace) -> PretrainRun:
    """Returns a run with the asked length, small if that is asked; it fits the mixture.

    Raises:
        ValueError: it does not.
    """
    plan = Plan(options.mixture)
    if options.tiny:
        model = replace(run.model, vocab_size=plan.manifest["vocabulary_size"])
        run = tiny(replace(run, model=model, sequence_length=plan.sequence_length))
    elif options.tokens:
        run = run.with_steps(max(1, options.tokens // run.tokens_per_step))
    check_fit(run, plan, options.vocabulary)
    return run


class Report:
    """The JSON file of a script, written again whenever a trial has ended."""

    def __init__(self, name: str, what: str, options: argparse.Namespace, place: Place) -> None:
        self.path = Path(os.environ.get("OUT", ".")) / f"{name}.json"
        self._place, self._begin = place, time.perf_counter()
        on_gpu = place.gpus > 0
        self.content: dict[str, Any] = {
            "what": what,
            "commit": find_commit(options.commit),
            "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
            "gpus": place.gpus,
            "versions": versions(),
            "mixture": Plan(place.mixture).fingerprint,
            "headline_part": HEADLINE,
            "data": json.loads(options.about.read_text()) if options.about else None,
        }

    def update(self, trials: list[Trial]) -> dict[str, dict[str, Any]]:
        """Measures the trials that are finished, puts them in and returns them by name."""
        found = {
            trial.name: measured(self._place.folder(trial.name))
            for trial in trials
            if self._place.is_done(trial)
        }
        self.content["trials"] = found
        self.write()
        return found

    def write(self) -> None:
        self.content["wall_s"] = round(time.perf_counter() - self._begin, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def rates_of(work: Path) -> dict[str, float]:
    """Returns the peak learning rates that a sweep has chosen, by name of the run."""
    path = work / RATES
    return json.loads(path.read_text()) if path.exists() else {}
