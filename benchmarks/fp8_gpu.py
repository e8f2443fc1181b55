"""FP8 on one GPU beside BF16: error and time of products, losses, tokens per second, MFU.

    OUT=DIR python -m benchmarks.fp8_gpu --mixture FOLDER [--commit HASH] [--only casts products]
    OUT=DIR python -m benchmarks.fp8_gpu --mixture FOLDER --tiny    (tiny shapes on the CPU)

Needs torch, triton, numpy, numba, pyarrow, rich, safetensors and, for energy, nvidia-ml-py. The
mixture (of `gristmill mix`) has at most 32,768 ids for `150m`; its sequence length is taken as it
is. Sections, each in $OUT/fp8_gpu.json as soon as it is done:

    casts     our kernels against the CPU's emulation, bit for bit; products within rounding
    products  the relative error of forward, input gradient and weight gradient against FP64, and
              their time with and without the casts, at the shapes of the models below
    150m      300 steps with BF16, fp8_tensor and fp8_block: one seed, the same tokens
    1b        tokens per second of the 1.05B shape, likewise

A section or case that fails is recorded with its traceback and the next one runs, since a GPU is
hired by the minute; the exit code is then 1.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.fp8_products import compare_casts, measure_products
from benchmarks.training_runs import in_blocks_of_128, losses_150m, short_1b, tiny, with_tokens
from benchmarks.training_steps import (
    WARM_STEPS,
    find_commit,
    measure,
    versions,
)
from mixtures.plan import Plan
from pipelines.progress import say
from training_hook.device import device_name, energy_counter
from training_hook.linear_recipe import MULTIPLES
from training_hook.run import PretrainRun

SECTIONS = ("casts", "products", "150m", "1b")


def check_mixture(run: PretrainRun, plan: Plan) -> None:
    """Checks that a mixture has the ids and samples that a run takes.

    Raises:
        ValueError: it has not.
    """
    size, wanted = plan.manifest["vocabulary_size"], run.total_samples
    if size > run.model.vocab_size or wanted > plan.num_samples:
        raise ValueError(
            f"{plan.path} has ids up to {size} and {plan.num_samples} samples; {run.name} wanted "
            f"{run.model.vocab_size} ids at most and {wanted} samples. Mix another one"
        )


def summary_of_losses(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the mean loss of the last tenth of each case, and its distance from "plain"."""
    means = {}
    for recipe, case in cases.items():
        losses = case.get("losses", [])
        if losses:
            means[recipe] = statistics.fmean(losses[-max(1, len(losses) // 10) :])
    plain = means.get("plain")
    return {
        recipe: {
            "mean_loss_of_last_tenth": round(mean, 5),
            "relative_to_plain": None if plain is None else round(mean / plain - 1, 6),
        }
        for recipe, mean in means.items()
    }


class Report:
    """The JSON file: what is known, written again whenever something is added."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.failed = path, False
        self.started = time.perf_counter()
        self.content: dict[str, Any] = head
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, place: dict[str, Any], name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Puts a function's record, or the traceback of its failure, under a name."""
        begin = time.perf_counter()
        try:
            place[name] = make()
        except Exception:
            self.failed = True
            place[name] = {"error": traceback.format_exc()}
            say(f"{name}: failed\n{traceback.format_exc()}")
        place[name] = {"section_s": round(time.perf_counter() - begin, 1), **place[name]}
        self.write()

    def write(self) -> None:
        self.content["wall_s"] = round(time.perf_counter() - self.started, 1)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def free(device: torch.device) -> None:
    """Gives the memory and the graphs of a case back before the next."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description="FP8 on one GPU beside BF16.")
    parser.add_argument("--mixture", type=Path, required=True, help="folder of `gristmill mix`")
    parser.add_argument("--long-mixture", type=Path, help="for 1b: one of longer sequences")
    parser.add_argument("--commit", help="commit of this tree, where git cannot be asked")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--recipes", nargs="+", choices=tuple(MULTIPLES), default=tuple(MULTIPLES))
    parser.add_argument("--steps", type=int, default=300, help="of the 150m losses")
    parser.add_argument("--tokens-150m", type=int, default=16_384, help="at once, and a step")
    parser.add_argument("--tokens-1b", type=int, default=12_288, help="at once, and a step")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no GPU here: give --tiny to try the script with tiny shapes")
    device = torch.device("cpu") if options.tiny else torch.device("cuda", 0)
    plan, long = Plan(options.mixture), Plan(options.long_mixture or options.mixture)
    small = tiny() if options.tiny else losses_150m()
    large = tiny() if options.tiny else in_blocks_of_128(short_1b())
    timed = 2 if options.tiny else 15
    if options.tiny:
        options.steps, options.tokens_150m, options.tokens_1b = 8, 256, 256
    small = with_tokens(small, plan.sequence_length, options.tokens_150m, options.steps)
    large = with_tokens(large, long.sequence_length, options.tokens_1b, WARM_STEPS + timed)
    for section, run, mixture in (("150m", small, plan), ("1b", large, long)):
        if section in options.only:
            check_mixture(run, mixture)
    report = Report(
        Path(os.environ.get("OUT", ".")) / "fp8_gpu.json",
        {
            "what": "FP8 linear layers and training in them, beside BF16, on one device",
            "commit": find_commit(options.commit),
            "device": device_name(device),
            "cuda": torch.version.cuda,
            "versions": versions(),
            "mixture": plan.fingerprint,
            "mfu_formula": "3 * forward_flops * tokens_per_second / 989.5e12 (dense BF16 peak)",
            "losses": "sum over a step's tokens / their number; the same tokens in all cases",
        },
    )
    report.write()
    content = report.content
    with energy_counter(device) as joules:
        if "casts" in options.only:
            report.add(content, "casts", partial(compare_casts, device))
        if "products" in options.only:
            tokens = 256 if options.tiny else 16_384
            places: dict[str, Any] = content.setdefault("products", {})
            for run in {run.name: run for run in (small, large)}.values():
                report.add(places, run.name, partial(measure_products, run, tokens, device))
                free(device)
        for section, run, mixture in (("150m", small, plan), ("1b", large, long)):
            if section not in options.only:
                continue
            cases: dict[str, Any] = content.setdefault(section, {})
            steps = run.total_steps - WARM_STEPS
            profile = section == "1b" and not options.tiny
            for recipe in options.recipes:
                case = replace(run, linear_recipe=recipe)
                say(f"{section}: {recipe}")
                measured = partial(measure, case, mixture.path, device, steps, joules, profile)
                report.add(cases, recipe, measured)
                free(device)
            content[f"{section}_losses"] = summary_of_losses(cases)
            report.write()
    say(f"written: {report.path}, {content['wall_s']} s in all")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
