"""Correctness and speed of training on one GPU beside peers, in one command: `make bench-gpu`.

    python -m benchmarks.bench_gpu --out FOLDER [--mixture FOLDER] [--peers FOLDER]
        [--only bf16 mamba_ssm ...] [--commit HASH]

Each row of `gpu_rows` runs in a process of its own. As many as the GPU's memory holds compile side
by side, with the compilers' caches on disk in common; then each is measured while the others wait.
Every record is in FOLDER/bench_gpu.json as soon as it is there, failures with their traceback, and
the same command goes on where it stopped. It ends with a table. The exit code is 1 if a row failed.

`--only bf16 bf16_deterministic` says what deterministic algorithms cost; rows like the latter do
not run unless they are named.

Without --mixture the text of the installed packages is tokenized and mixed; without --peers they
are installed into FOLDER/peers, for which a network is needed.
"""

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from math import isinf
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.gpu_rows import ROWS
from benchmarks.training_steps import find_commit, versions
from benchmarks.training_table import table
from mixtures.plan import Plan
from pipelines.progress import say
from training_hook.device import device_name

SEQUENCE_LENGTH = 8192
VOCABULARY = 32_000
TEXT_BYTES = 32_000_000
READY_S, MEASURED_S, SAVING_S = 240.0, 150.0, 20.0
"""Limits of a row: until it is ready, from then on, and to write why it failed."""


class Child:
    """A row's process."""

    def __init__(self, row: str, options: argparse.Namespace) -> None:
        self.row, self.record_file = row, options.out / f"{row}.json"
        self.log = options.out / f"{row}.log"
        self.record_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu_rows", row]
        command += ["--mixture", str(options.mixture), "--out", str(self.record_file)]
        command += ["--peers", str(options.peers)] if options.peers else []
        command += ["--tiny"] if options.tiny else []
        self.started, self.ended = time.monotonic(), False
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # the compilers' workers end with it
                env={**os.environ, **caches(options.out)},
            )

    def wait_ready(self, limit_s: float) -> bool:
        """Waits until the row is ready; ends it if that takes too long."""
        assert self.process.stdout is not None
        left = max(0.0, self.started + limit_s - time.monotonic())
        readable, _, _ = select.select([self.process.stdout], [], [], left)
        ready = bool(readable) and self.process.stdout.readline() == "ready\n"
        if not readable:
            self.end()
        return ready

    def measure(self, limit_s: float) -> None:
        """Lets the row measure and waits for it; ends it if that takes too long."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died meanwhile, which its record says
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.end()

    def end(self) -> None:
        """Kills what is left of the row: itself, and the compilers' workers that it started."""
        if not self.ended:
            self.ended = True
            with suppress(ProcessLookupError):  # all of them are gone
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()

    def record(self) -> dict[str, Any]:
        """Returns what the row has written, or that it has written nothing."""
        if not self.ended:
            self.process.wait(SAVING_S)
            self.end()
        seconds = round(time.monotonic() - self.started, 1)
        if self.record_file.exists():
            return {"row_s": seconds, **json.loads(self.record_file.read_text())}
        said = self.log.read_text().splitlines()[-30:]
        code = self.process.returncode
        said.append(f"{self.row} left no record, exit code {code}; the lines above were its last")
        return {"row_s": seconds, "error": "\n".join(said)}


def caches(out: Path) -> dict[str, str]:
    """Returns where compilers keep what they have made, for all rows in common."""
    names = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    return {
        name: os.environ.get(name, str((out / "caches" / folder).resolve()))
        for name, folder in names.items()
    }


def groups(rows: Sequence[str], memory_gib: float) -> Iterator[list[str]]:
    """Yields the rows that compile side by side in so much memory, in order."""
    group: list[str] = []
    for row in rows:
        if group and sum(ROWS[name].gib for name in [*group, row]) > memory_gib:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def memory_gib(device: torch.device) -> float:
    """Returns the memory of a GPU; on a CPU, what lets one row run at a time."""
    if device.type != "cuda":
        return 0.0
    return torch.cuda.get_device_properties(device).total_memory / 2**30


class Results:
    """The JSON file, written again with each record."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.since = path, time.perf_counter()
        self.content: dict[str, Any] = {**head, "wall_s": 0.0, "rows": {}}
        if path.exists():
            earlier = json.loads(path.read_text())
            if {name: earlier.get(name) for name in head} == head:
                self.content = earlier

    def missing(self, rows: Sequence[str]) -> list[str]:
        """Returns the rows that have no record yet, or one of a failure."""
        return [row for row in rows if "error" in self.content["rows"].get(row, {"error": ""})]

    def add(self, row: str, record: dict[str, Any]) -> None:
        """Writes the record of a row."""
        self.content["rows"][row] = record
        now = time.perf_counter()
        self.content["wall_s"] = round(self.content["wall_s"] + now - self.since, 1)
        self.since = now
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")
        failure = record.get("error", "").strip().splitlines()
        say(f"bench_gpu: {row}: {failure[-1] if failure else 'done'} ({record['row_s']} s)")


def run_group(group: list[str], options: argparse.Namespace, results: Results) -> None:
    """Compiles rows side by side and measures one after the other."""
    say(f"bench_gpu: compiling: {', '.join(group)}")
    started = time.perf_counter()
    children = [Child(row, options) for row in group]
    try:
        waited = [(child, child.wait_ready(READY_S)) for child in children]
        say(f"bench_gpu: measuring, after {time.perf_counter() - started:.0f} s")
        for child, ready in waited:
            if ready:
                # what takes all memory could not compile before
                child.measure(READY_S if isinf(ROWS[child.row].gib) else MEASURED_S)
            results.add(child.row, child.record())
    finally:
        for child in children:
            child.end()


def made(folder: Path, make: Callable[[Path], Any]) -> Path:
    """Returns a folder that a function fills, which is done if it is not there."""
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        part.mkdir(parents=True)
        make(part)
        part.rename(folder)
    return folder


def mix_text(folder: Path) -> None:
    """Tokenizes and mixes the text of the installed packages."""
    from benchmarks import pretrain_gpu

    say("bench_gpu: no mixture given: tokenizing the installed packages")
    pretrain_gpu.make_tokens(folder, VOCABULARY, TEXT_BYTES)
    pretrain_gpu.make_mixture(folder, SEQUENCE_LENGTH)


def main() -> int:
    """Runs the rows, prints the table and returns the exit code."""
    parser = argparse.ArgumentParser(description="Training on one GPU beside peers.")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gpu"))
    parser.add_argument("--mixture", type=Path, help="of `gristmill mix`, 8,192 tokens a sequence")
    parser.add_argument("--peers", type=Path, help="of `python -m benchmarks.peers FOLDER`")
    usual = tuple(name for name, row in ROWS.items() if not row.deterministic)
    parser.add_argument("--only", nargs="+", choices=tuple(ROWS), default=usual)
    parser.add_argument("--commit", help="commit of this tree, where git cannot be asked")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no GPU here: give --tiny to try the script with tiny shapes")
    device = torch.device("cpu") if options.tiny else torch.device("cuda", 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and no row goes on alone
    options.out.mkdir(parents=True, exist_ok=True)
    if options.mixture is None:
        options.mixture = made(options.out / "text", mix_text) / f"mixture-{SEQUENCE_LENGTH}"
    if options.peers is None:
        options.peers = made(options.out / "peers", peers.install)
    head = {
        "what": "training steps on one GPU: kernels, our recipes and peers",
        "commit": find_commit(options.commit),
        "device": device_name(device),
        "cuda": torch.version.cuda,
        "versions": {**versions(("transformers",)), **peers.PINS},
        "mixture": Plan(options.mixture).fingerprint,
    }
    results = Results(options.out / "bench_gpu.json", head)
    for group in groups(results.missing(options.only), memory_gib(device)):
        run_group(group, options, results)
    print(table(results.content, ROWS))
    say(f"bench_gpu: written: {results.path}, {results.content['wall_s']:.0f} s in all")
    return int(bool(results.missing(options.only)))


if __name__ == "__main__":
    sys.exit(main())
