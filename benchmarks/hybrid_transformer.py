"""Hybrid beside Transformer: held-out loss and Phonebook recall, same size, data, tokens and time.

    OUT=DIR python -m benchmarks.hybrid_transformer --mixture FOLDER --work DIR --vocabulary FOLDER
        [--gpus 2] [--commit HASH] [--about about.json] [--sweep | --rates HYBRID TRANSFORMER]
        [--equal-time] [--tokens N] [--seeds 1 2]
    OUT=DIR python -m benchmarks.hybrid_transformer --mixture FOLDER --work DIR --tiny  (on the CPU)

Both are trained by the same loop in BF16 with the same schedule on the same samples; the
Transformer has rotary positions and the hybrid's attention. --sweep first trains both on a
sixteenth of the tokens with each of three peak learning rates and takes the one with the lowest
held-out loss: as much search for one as for the other, and not on what is asked in the end.
--equal-time trains the faster one once more for as many tokens as fit into the slower one's
training seconds, where the mixture has that many. Phone books in both mixtures are 5%; those that
are asked have names that are in no training document. The hybrid's runs are those of `fp8_loss` in
BF16, if they are in the same --work. The same command goes on where it stopped.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.trial_command import RATES, Report, fitted, place_of, rates_of, trial_parser
from benchmarks.trial_queue import Place, Trial, run_queue
from benchmarks.trial_results import HEADLINE, at_equal_time, compare, measured
from benchmarks.trial_runs import hybrid, transformer
from mixtures.plan import Plan
from pipelines.progress import say
from training_hook.run import PretrainRun

SWEEP_RATES = (5e-4, 1e-3, 2e-3)
SWEEP_SHARE = 1 / 16
SWEEP_WARMUP_SHARE = 0.2
"""Of a run that is this short."""
KINDS = {"hybrid": hybrid, "transformer": transformer}


def sweep(options: Any, place: Place, report: Report) -> dict[str, str]:
    """Trains short runs with several learning rates and writes the best ones down."""
    quiet = replace(place, vocabulary=None)
    groups = []
    for kind, make in KINDS.items():
        run = fitted(make(), options)
        short = run.with_steps(max(1, round(SWEEP_SHARE * run.total_steps)))
        short = replace(
            short,
            warmup_share=SWEEP_WARMUP_SHARE,
            checkpoint_interval=10_000,
            evaluation_interval=10_000,
        )
        groups.append(
            [
                Trial(f"sweep-{kind}-{rate:g}", replace(short, peak_learning_rate=rate))
                for rate in SWEEP_RATES
            ]
        )
    failed = run_queue(groups, quiet, lambda: None)
    chosen, losses = {}, {}
    for kind, group in zip(KINDS, groups, strict=True):
        losses[kind] = {
            trial.run.peak_learning_rate: measured(place.folder(trial.name))["held_out"]["parts"][
                HEADLINE
            ]["loss"]
            for trial in group
            if quiet.is_done(trial)
        }
        if losses[kind]:
            chosen[group[0].run.name] = min(losses[kind], key=losses[kind].__getitem__)
    (place.work / RATES).write_text(json.dumps(chosen))
    report.content["sweep"] = {"held_out_loss": losses, "chosen": chosen}
    report.write()
    return failed


def with_time(run: PretrainRun, own: dict, slower: dict, plan: Plan) -> PretrainRun | None:
    """Returns a run that takes as long as the slower one; None where the mixture has too little."""
    ratio = slower["train_seconds"] / own["train_seconds"]
    longer = run.with_steps(round(ratio * run.total_steps))
    return longer if longer.total_steps * longer.batch_size <= plan.num_samples else None


def main() -> int:
    """Writes $OUT/hybrid_transformer.json and returns the exit code."""
    parser = trial_parser(__doc__)
    parser.add_argument("--sweep", action="store_true", help="choose the learning rates first")
    parser.add_argument("--sweep-only", action="store_true", help="and end then")
    parser.add_argument("--rates", type=float, nargs=2, help="of the hybrid and the Transformer")
    parser.add_argument("--equal-time", action="store_true", help="a longer run of the faster one")
    options = parser.parse_args()
    place = place_of(options)
    place.work.mkdir(parents=True, exist_ok=True)
    what = "a hybrid and a Transformer of the same size on the same data"
    report = Report("hybrid_transformer", what, options, place)
    failed = {}
    if options.sweep or options.sweep_only:
        failed = sweep(options, place, report)
        if options.sweep_only:
            report.content["failed"] = failed
            report.write()
            return int(bool(failed))
    rates = rates_of(place.work)
    if options.rates:
        rates = dict(zip((make().name for make in KINDS.values()), options.rates, strict=True))
    report.content["rates"] = rates
    trials: dict[tuple[str, int], Trial] = {}
    for seed in options.seeds:
        for kind, make in KINDS.items():
            run = make()
            rate = rates.get(run.name, run.peak_learning_rate)
            run = fitted(replace(run, seed=seed, peak_learning_rate=rate), options)
            trials[kind, seed] = Trial(f"{kind}-plain-{seed}", run)

    def update() -> None:
        found = report.update(list(trials.values()))
        both = [s for s in options.seeds if all(trials[kind, s].name in found for kind in KINDS)]
        if both:
            one, other = ([found[trials[kind, s].name] for s in both] for kind in KINDS)
            report.content["transformer_less_hybrid"] = compare(one, other) | {
                "equal_time": [at_equal_time(*folders(s)) for s in both]
            }
        report.write()

    def folders(seed: int) -> list[Path]:
        return [place.folder(trials[kind, seed].name) for kind in KINDS]

    update()
    failed |= run_queue([[trial] for trial in trials.values()], place, update)
    if options.equal_time and not failed:
        failed |= equal_time(trials, options.seeds[0], place, report)
    report.content["failed"] = failed
    update()
    say(f"written: {report.path}")
    return int(bool(failed))


def equal_time(
    trials: dict[tuple[str, int], Trial], seed: int, place: Place, report: Report
) -> dict[str, str]:
    """Trains the faster one for the slower one's seconds, with a schedule of that length."""
    seconds = {k: measured(place.folder(trials[k, seed].name)) for k in KINDS}
    fast, slow = sorted(KINDS, key=lambda kind: seconds[kind]["train_seconds"])
    run = with_time(trials[fast, seed].run, seconds[fast], seconds[slow], Plan(place.mixture))
    if run is None:
        report.content["equal_time"] = f"the mixture has too few samples for {fast}"
        return {}
    trial = Trial(f"{fast}-equal-time-{seed}", run)
    failed = run_queue([[trial]], place, lambda: None)
    if not failed:
        longer = measured(place.folder(trial.name))
        report.content["equal_time"] = {
            "longer": fast,
            "trial": longer,
            "less_the_slower_one": {
                part: score["loss"] - seconds[slow]["held_out"]["parts"][part]["loss"]
                for part, score in longer["held_out"]["parts"].items()
            },
        }
    return failed


if __name__ == "__main__":
    sys.exit(main())
