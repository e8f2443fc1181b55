"""Does verification help? The same model fine-tuned on verified and on as many unverified traces.

Takes a pretrained model and the traces that were sampled from it. Verified are the accepted ones;
unverified are drawn at random from all answers, right and wrong. Each is fine-tuned on with several
seeds (order of the data and draw of the unverified), and answers held-out problems greedily; none
of them was used to choose anything. Intervals are Student's t over seeds.

    python -m benchmarks.trace_tuning --wheel runs/first --traces runs/first/traces [--seeds 3]
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from benchmarks.machine import about, write_result
from flows.runs.sft_tiny import run as sft_tiny
from mixtures.mixture import Mixture, Part, mix
from mixtures.token_dataset import tokenize
from pipelines.curate import curate
from pipelines.dataset import Dataset
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe, Source
from training_hook.evaluation.answers import evaluate_answers
from training_hook.sft import sft

COLUMNS = ["id", "text", "messages"]
PROBLEMS = 300


def rows_of(traces: Path) -> dict[str, pa.Table]:
    """Returns the accepted traces, and all answers that can be conversations."""
    dataset = Dataset(traces)
    accepted = pq.read_table(dataset.files("data"), columns=COLUMNS)
    dropped = pq.read_table(dataset.files("dropped"), columns=COLUMNS)
    return {"verified": accepted, "all": pa.concat_tables([accepted, dropped])}


def tuned(
    name: str, rows: pa.Table, wheel: Path, folder: Path, seed: int, tokens: int
) -> dict[str, Any]:
    """Fine-tunes on rows and returns the answers to held-out problems."""
    place = folder / f"{name}-{seed}"
    (place / "in").mkdir(parents=True)
    pq.write_table(rows, place / "in" / "rows.parquet")
    source = Source("rows", str(place / "in"))
    curate(Recipe("rows", (ParquetReader(columns=("messages",)),), ()), [source], place / "rows")
    found = tokenize(place / "rows", wheel / "tokenizer", place / "tokens", messages=True)
    run = replace(sft_tiny(), seed=seed, total_tokens=tokens)
    samples = run.total_samples
    part = (Part("traces", 1.0, max_repetition=1000.0),)
    mixture = Mixture("traces", part, run.sequence_length, num_samples=samples)
    mix(mixture, {"traces": str(place / "tokens")}, place / "mixture", seed)
    summary = sft(run, place / "mixture", wheel / "training", place / "sft")
    answers = evaluate_answers(place / "sft", wheel / "tokenizer", PROBLEMS, chat=True)
    return {
        "seed": seed,
        "traces": found["documents"],
        "trace_tokens": found["tokens"],
        "trained_tokens": summary["tokens"],
        "accuracy": answers["accuracy"],
        "families": {k: v["accuracy"] for k, v in answers["families"].items()},
    }


def interval(values: list[float]) -> list[float]:
    """Returns the 95% interval of the mean over seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return [float(np.mean(values) - half), float(np.mean(values) + half)]


def main() -> None:
    """Writes benchmarks/results/trace_tuning.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, required=True, help="folder of a flywheel run")
    parser.add_argument("--traces", type=Path, required=True, help="folder that synth wrote")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=sft_tiny().total_tokens)
    options = parser.parse_args()
    before = evaluate_answers(options.wheel / "training", options.wheel / "tokenizer", PROBLEMS)
    rows = rows_of(options.traces)
    number = len(rows["verified"])
    runs: dict[str, list[dict[str, Any]]] = {"verified": [], "unverified": []}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(1, options.seeds + 1):
            drawn = np.random.default_rng(seed).choice(len(rows["all"]), number, replace=False)
            chosen = {"verified": rows["verified"], "unverified": rows["all"].take(drawn)}
            for name, table in chosen.items():
                result = tuned(name, table, options.wheel, Path(temporary), seed, options.tokens)
                runs[name].append(result)
                print(name, result, flush=True)
    accuracy = {name: [run["accuracy"] for run in found] for name, found in runs.items()}
    gaps = [a - b for a, b in zip(accuracy["verified"], accuracy["unverified"], strict=True)]
    result = {
        "what": "held-out exact answers before and after fine-tuning on traces",
        "problems": before["asked"],
        "before": {key: before[key] for key in ("accuracy", "interval")}
        | {"families": {k: v["accuracy"] for k, v in before["families"].items()}},
        "runs": runs,
        "mean": {name: float(np.mean(values)) for name, values in accuracy.items()},
        "interval_over_seeds": {name: interval(values) for name, values in accuracy.items()},
        "verified_less_unverified": {"mean": float(np.mean(gaps)), "interval": interval(gaps)},
        "machine": about(["gristmill", "torch"]),
    }
    write_result("trace_tuning", result)


if __name__ == "__main__":
    main()
