"""Pretraining on one GPU: tokens per second, MFU, memory, energy and losses of our own loop.

    python -m benchmarks.pretrain_gpu --out FILE.json [--commit HASH] [--only 150m 1b end_to_end]
    python -m benchmarks.pretrain_gpu --out FILE.json --smoke    (tiny shapes on the CPU)

Needs torch, numpy, numba, pyarrow, tokenizers, sentencepiece, rich, safetensors and, for energy,
nvidia-ml-py. The text is that of the Python packages on the machine: a vocabulary is trained on it,
it is tokenized and mixed as for any run. `150m` and `1b` time optimizer steps of the real loop
(stream, prefetch, packed documents, FP32 masters, clipping, fused AdamW); `end_to_end` is
`pretrain` itself, with evaluation and checkpoint. `training_steps` says what is measured; where
memory does not suffice it fails, and --micro-batch says otherwise.
"""

import argparse
import gc
import json
import os
import random
import statistics
import sysconfig
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.training_runs import short_1b
from benchmarks.training_steps import find_commit, measure, versions
from flows.runs import hybrid_150m
from mixtures.mixture import Mixture, Part, mix
from mixtures.token_dataset import tokenize
from mixtures.vocabulary_training import train_vocabulary
from pipelines.dataset import file_entry, write_json
from pipelines.document import document_ids
from pipelines.progress import say
from training_hook.device import device_name, energy_counter
from training_hook.metrics import read_metrics
from training_hook.pretrain import pretrain
from training_hook.run import PretrainRun


def smoke(run: PretrainRun) -> PretrainRun:
    """Shrinks a run to what a CPU traces in seconds; letters, precision and loop stay."""
    model = replace(
        run.model,
        hybrid_override_pattern="M-M*-",
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=2,
        ssm_state_size=8,
        chunk_size=16,
    )
    return replace(
        run,
        model=model,
        sequence_length=64,
        batch_size=4,
        micro_batch_size=2,
        precision="float32",
        backend="aot_eager",
    )


def read_texts(patterns: list[str], wanted_bytes: int) -> list[str]:
    """Returns texts of the installed packages and the standard library, in a seeded order."""
    roots = {Path(sysconfig.get_paths()[name]) for name in ("purelib", "platlib", "stdlib")}
    files = sorted({file for root in roots for p in patterns for file in root.glob(f"**/{p}")})
    random.Random(0).shuffle(files)
    texts, total = [], 0
    for file in files:
        if not file.is_file() or not 200 < file.stat().st_size < 500_000:
            continue
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        texts.append(text)
        total += file.stat().st_size
        if total > wanted_bytes:
            break
    return texts


def write_dataset(path: Path, texts: list[str], num_files: int) -> Path:
    """Writes a dataset as `curate` would, without having curated."""
    (path / "data").mkdir(parents=True)
    entries = []
    for number in range(num_files):
        rows = texts[number::num_files]
        name = f"{number:05d}.parquet"
        ids = document_ids(path.name, [name] * len(rows), [str(row) for row in range(len(rows))])
        file = path / "data" / name
        pq.write_table(pa.table({"id": ids, "text": pa.array(rows, pa.string())}), file)
        entries.append(file_entry(path, file, len(rows)))
    write_json(path / "manifest.json", {"recipe": {"fingerprint": path.name}, "files": entries})
    return path


def make_tokens(folder: Path, vocabulary_size: int, total_bytes: int) -> dict[str, Any]:
    """Writes a vocabulary and token datasets `code` and `prose`; returns what they hold."""
    workers = os.cpu_count() or 1
    prose = read_texts(["*.md", "*.rst", "METADATA", "LICENSE*", "*.txt"], total_bytes // 4)
    code = read_texts(["*.py"], total_bytes)
    datasets = {
        "code": write_dataset(folder / "code", code, workers),
        "prose": write_dataset(folder / "prose", prose, workers),
    }
    train_vocabulary(
        list(datasets.values()),
        folder / "vocabulary",
        size=vocabulary_size,
        sample_bytes=min(total_bytes, 8_000_000),
    )
    found = {}
    for name, dataset in datasets.items():
        tokens = tokenize(dataset, folder / "vocabulary", folder / f"{name}-tokens", workers)
        found[name] = {key: tokens[key] for key in ("documents", "tokens", "bytes")}
    return {"text": "installed Python packages", "vocabulary_size": vocabulary_size, **found}


def make_mixture(folder: Path, sequence_length: int) -> Path:
    """Mixes the token datasets into samples of a length; returns the mixture's folder."""
    out = folder / f"mixture-{sequence_length}"
    mixture = Mixture(
        "benchmark",
        (Part("code", 0.7, max_repetition=50.0), Part("prose", 0.3, max_repetition=50.0)),
        sequence_length,
        holdout_share=0.02,
        max_documents=64,
    )
    tokens = {name: folder / f"{name}-tokens" for name in ("code", "prose")}
    mix(mixture, tokens, out, seed=0)
    return out


def end_to_end(run: PretrainRun, mixture: Path, out: Path, device: torch.device) -> dict[str, Any]:
    """Runs `pretrain` whole: evaluation, training, checkpoint, evaluation."""
    say(f"{run.name} end to end: {run.total_steps} steps")
    start = time.perf_counter()
    summary = pretrain(run, mixture, out, device=device.type)
    wall = time.perf_counter() - start
    steps = read_metrics(out)
    late = steps["tokens_per_second"].to_pylist()[len(steps) // 2 :]
    checkpoint = Path(summary["checkpoint"])
    kept = ("status", "parameters", "tokens", "seconds", "tokens_per_second", "bits_per_byte")
    return {
        "name": f"{run.name} end to end",
        **{key: summary[key] for key in kept},
        "wall_s": round(wall, 2),
        "tokens_per_second_second_half": round(statistics.median(late), 1),
        "checkpoint_bytes": sum(f.stat().st_size for f in checkpoint.rglob("*") if f.is_file()),
        "losses": [round(loss, 4) for loss in steps["loss"].to_pylist()],
        "learning_rates": steps["learning_rate"].to_pylist(),
        "run": asdict(run),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Pretraining on one GPU: tokens per second, MFU, energy."
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--commit", help="commit of this tree, where git cannot be asked")
    parser.add_argument("--only", nargs="+", choices=("150m", "1b", "end_to_end"))
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each case")
    parser.add_argument("--micro-batch", type=int, help="of the 1b cases, where memory is short")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        parser.error("no GPU here: give --smoke to try the script with tiny shapes")
    device = torch.device("cpu") if options.smoke else torch.device("cuda", 0)
    wanted = options.only or ["150m", "1b", "end_to_end"]
    small, large = hybrid_150m.run(), short_1b()
    small = replace(small, batch_size=64, total_tokens=40 * 64 * small.sequence_length)
    if options.micro_batch:
        large = replace(
            large, micro_batch_size=options.micro_batch, batch_size=max(2, options.micro_batch)
        )
    if options.smoke:
        small, large, options.steps = smoke(small).with_steps(6), smoke(large), 3
    small = replace(small, evaluation_tokens=10_000 if options.smoke else 500_000)
    started = time.perf_counter()
    report: dict[str, Any] = {
        "what": "pretraining with our own loop on one device",
        "commit": find_commit(options.commit),
        "device": device_name(device),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "mfu_formula": "3 * forward_flops * tokens_per_second / 989.5e12 (dense BF16 peak)",
        "cases": [],
    }

    def add(case: dict[str, Any]) -> None:
        gc.collect()  # the model of the case is gone: its memory is the next one's
        if device.type == "cuda":
            torch.cuda.empty_cache()
        report["cases"].append(case)
        report["wall_s"] = round(time.perf_counter() - started, 1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")  # what is done stays

    with tempfile.TemporaryDirectory() as name, energy_counter(device) as joules:
        folder = Path(name)
        say("text: reading, training a vocabulary, tokenizing")
        report["text"] = make_tokens(
            folder, small.model.vocab_size, 300_000 if options.smoke else 32_000_000
        )
        say(f"text: {time.perf_counter() - started:.1f} s")
        mixture = make_mixture(folder, small.sequence_length)
        if "150m" in wanted:
            add(measure(small, mixture, device, options.steps, joules, not options.smoke))
        if "1b" in wanted:
            long = make_mixture(folder, large.sequence_length)
            add(measure(large, long, device, options.steps, joules, not options.smoke))
            more = replace(large, batch_size=4 * large.batch_size)
            add(measure(more, long, device, max(2, options.steps // 4), joules, profile=False))
        if "end_to_end" in wanted:
            add(end_to_end(small, mixture, folder / "run", device))
    say(f"written: {options.out}, {report['wall_s']} s in all")


if __name__ == "__main__":
    main()
