"""FP8 beside BF16: what the loss of a hybrid loses over 100 million tokens, and the noise of that.

    OUT=DIR python -m benchmarks.fp8_loss --mixture FOLDER --work DIR [--gpus 2] [--commit HASH]
        [--vocabulary FOLDER] [--about about.json] [--recipes fp8_tensor] [--tokens N] [--seeds 1 2]
    OUT=DIR python -m benchmarks.fp8_loss --mixture FOLDER --work DIR --tiny    (on the CPU)

Runs of one seed have the same first weights, and all runs the same samples in the same order; so
what two seeds of one recipe are apart is the noise of weights and rounding, not of the data. The
same command goes on where it stopped; $OUT/fp8_loss.json is written when a run has ended. Learning
rates are those of the BF16 sweep of `hybrid_transformer`, if there was one in the same --work.
"""

import sys
from dataclasses import replace
from typing import Any

from benchmarks.trial_command import Report, fitted, place_of, rates_of, trial_parser
from benchmarks.trial_queue import Trial, run_queue
from benchmarks.trial_results import at_equal_time, compare
from benchmarks.trial_runs import hybrid
from pipelines.progress import say
from training_hook.linear_recipe import MULTIPLES

BASELINE = "plain"


def main() -> int:
    """Writes $OUT/fp8_loss.json and returns the exit code."""
    parser = trial_parser(__doc__)
    others = [recipe for recipe in MULTIPLES if recipe != BASELINE]
    parser.add_argument("--recipes", nargs="+", choices=others, default=["fp8_tensor"])
    parser.add_argument("--rate", type=float, help="peak learning rate, in place of the sweep's")
    options = parser.parse_args()
    place = place_of(options)
    base = hybrid()
    chosen = rates_of(place.work).get(base.name, base.peak_learning_rate)
    base = replace(base, peak_learning_rate=options.rate or chosen)
    recipes = [BASELINE, *options.recipes]
    trials = {
        (recipe, seed): Trial(
            f"hybrid-{recipe}-{seed}",
            fitted(replace(base, linear_recipe=recipe, seed=seed), options),
        )
        for seed in options.seeds
        for recipe in recipes
    }
    report = Report("fp8_loss", "losses of FP8 and BF16 training, seed by seed", options, place)

    def update() -> None:
        found = report.update(list(trials.values()))
        pairs: dict[str, Any] = {}
        for recipe in options.recipes:
            seeds = [
                seed
                for seed in options.seeds
                if {trials[BASELINE, seed].name, trials[recipe, seed].name} <= found.keys()
            ]
            if not seeds:
                continue
            one, other = (
                [found[trials[kind, seed].name] for seed in seeds] for kind in (BASELINE, recipe)
            )
            pairs[recipe] = compare(one, other)
            pairs[recipe]["equal_time"] = [
                at_equal_time(*(place.folder(trials[k, s].name) for k in (BASELINE, recipe)))
                for s in seeds
            ]
        report.content["against_plain"] = pairs
        report.write()

    update()
    report.content["failed"] = run_queue([[trial] for trial in trials.values()], place, update)
    update()
    for recipe, found in report.content["against_plain"].items():
        loss = found["held_out_loss"]
        say(
            f"{recipe}: held-out loss {loss['mean_gap']:+.5f} nats a token "
            f"({100 * loss['mean_gap_relative']:+.3f}%) against BF16, seeds of BF16 are "
            f"{loss['range_over_seeds'][0]:.5f} apart"
        )
    say(f"written: {report.path}")
    return int(bool(report.content["failed"]))


if __name__ == "__main__":
    sys.exit(main())
