"""Several runs over several GPUs: one process each, begun again where an earlier call stopped.

A trial is a folder: `trial.json` says what is to run, `run/` is the training loop's own folder,
`log.txt` what it printed, `phonebook.json` its recall. One that is finished is not run again, one
that was killed goes on from its last checkpoint. The processes end with the one that started them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.progress import say
from training_hook.run import PretrainRun, run_differences

POLL_S = 0.2
LOG_TAIL = 2_000


@dataclass(frozen=True)
class Trial:
    """A run in a folder of its own."""

    name: str
    run: PretrainRun


@dataclass(frozen=True)
class Place:
    """Where trials find their data and leave their folders."""

    work: Path
    mixture: Path
    gpus: int
    """0 trains on the CPU, one after the other."""
    vocabulary: Path | None = None
    """To ask for phone books when a run is finished; not asked where it is not given."""

    def folder(self, name: str) -> Path:
        return self.work / name

    def is_done(self, trial: Trial) -> bool:
        """Says whether a trial is trained and, if that is wanted, was asked.

        Raises:
            ValueError: its folder is another run's.
        """
        folder = self.folder(trial.name)
        note = folder / "run" / "run.json"
        if note.exists():
            there = json.loads(note.read_text())["run"]
            if differences := run_differences(there, trial.run.parameters()):
                raise ValueError(
                    f"{folder} is another run's; {'; '.join(differences)}. Give the settings that "
                    "it was started with, or another --work"
                )
        asked = self.vocabulary is None or (folder / "phonebook.json").exists()
        return (folder / "run" / "manifest.json").exists() and asked


def run_queue(
    groups: Sequence[Sequence[Trial]], place: Place, after_each: Callable[[], None]
) -> dict[str, str]:
    """Runs groups of trials, the trials of a group one after the other in one process.

    Args:
        groups: in the order in which they begin.
        place: data, folders and GPUs.
        after_each: called when a group has ended.

    Returns:
        Why trials failed, by name: the end of their log.
    """
    waiting = [left for of in groups if (left := [t for t in of if not place.is_done(t)])]
    free = list(range(max(1, place.gpus)))
    running: dict[int, tuple[list[Trial], subprocess.Popen[bytes]]] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and free:
                gpu, trials = free.pop(0), waiting.pop(0)
                names = ", ".join(trial.name for trial in trials)
                say(f"trials: {names} on {f'GPU {gpu}' if place.gpus else 'the CPU'}")
                running[gpu] = trials, start_worker(trials, place, gpu)
            time.sleep(POLL_S)
            for gpu, (trials, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[gpu]
                free.append(gpu)
                for trial in trials:
                    if not place.is_done(trial):
                        failed[trial.name] = log_tail(place.folder(trial.name))
                        say(f"trials: {trial.name} failed\n{failed[trial.name]}")
                after_each()
    finally:
        for _, process in running.values():
            process.kill()
            process.wait()
    return failed


def visible_gpus() -> list[str]:
    """Returns the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]


def start_worker(trials: Sequence[Trial], place: Place, gpu: int) -> subprocess.Popen[bytes]:
    """Starts a process that carries trials out; it is killed if this process ends."""
    command = [sys.executable, "-m", "benchmarks.trial_worker"]
    for trial in trials:
        folder = place.folder(trial.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trial.json").write_text(json.dumps(trial.run.parameters(), indent=1))
        command.append(str(folder))
    command += ["--mixture", str(place.mixture)]
    if place.vocabulary is not None:
        command += ["--vocabulary", str(place.vocabulary)]
    environment = dict(os.environ)
    if place.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = visible_gpus()[gpu]
    else:
        command += ["--device", "cpu"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)


def log_tail(folder: Path) -> str:
    """Returns the end of a trial's log."""
    log = folder / "log.txt"
    return log.read_text("utf-8", "replace")[-LOG_TAIL:] if log.exists() else "it wrote no log"
