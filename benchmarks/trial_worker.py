"""Carries out trials in this process, see `trial_queue`: trains each, then asks for phone books.

python -m benchmarks.trial_worker FOLDER ... --mixture FOLDER [--vocabulary FOLDER]
"""

import argparse
import ctypes
import gc
import json
import os
import signal
import sys
from pathlib import Path

import torch

from benchmarks.trial_runs import to_run
from mixtures.vocabulary import load_vocabulary
from pipelines.dataset import write_json
from training_hook.carry_out import pick_device
from training_hook.checkpoint import load_weights
from training_hook.evaluation.phonebook import Phonebook, score_phonebook
from training_hook.loop import build_model
from training_hook.pretrain import pretrain
from training_hook.run import PretrainRun

PR_SET_PDEATHSIG = 1
ENTRIES = (8, 16, 32, 64, 96)  # the last are longer than any that is trained on
TINY_ENTRIES = (2, 4)


def end_with_parent() -> None:
    """Lets the kernel kill this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def ask(run: PretrainRun, out: Path, vocabulary: Path, device: torch.device) -> dict:
    """Returns the recall of a trained model from phone books of held-out names."""
    checkpoint = json.loads((out / "manifest.json").read_text())["checkpoint"]
    model = build_model(run)
    weights = load_weights(out / checkpoint)
    model.load_state_dict(weights, strict=not run.model.tie_word_embeddings)
    model.to(device)
    entries = ENTRIES if run.sequence_length >= 2_048 else TINY_ENTRIES
    task = Phonebook(entries=entries, num_items=200 if device.type == "cuda" else 5)
    return score_phonebook(model, load_vocabulary(vocabulary), run.sequence_length, task)


def main() -> int:
    """Returns the exit code: 0 if all trials are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--mixture", type=Path, required=True)
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    options = parser.parse_args()
    end_with_parent()
    for folder in options.folders:
        with (folder / "log.txt").open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        run = to_run(json.loads((folder / "trial.json").read_text()))
        summary = pretrain(run, options.mixture, folder / "run", device=options.device)
        if summary["status"] != "finished":
            return 1
        recall = folder / "phonebook.json"
        if options.vocabulary and not recall.exists():
            device = pick_device(options.device)
            write_json(recall, ask(run, folder / "run", options.vocabulary, device))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
