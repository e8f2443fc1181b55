"""The local engine: stages in worker processes, as many as fit into the memory given.

Workers come from a fork server that has the heavy libraries loaded, so they share those pages, and
none of them inherits threads. A worker that loses its parent ends at once, so a run that is killed
with -9 leaves nobody behind who would write into the next one.
"""

import gc
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from pipelines.atomic import written
from pipelines.engines import fork_server
from pipelines.engines.job import Job
from pipelines.engines.key_files import KEY_BYTES, load_array
from pipelines.engines.mark_files import MARK_BYTES
from pipelines.engines.pair_stages import (
    band_parts,
    carry_unit,
    link,
    link_band,
    set_unit,
    spread_band,
    walk_package,
)
from pipelines.engines.phase_files import mark_complete, verdicts_complete
from pipelines.engines.piece_stages import piece_bucket
from pipelines.engines.population import populate
from pipelines.engines.stages import group_bucket
from pipelines.engines.vector_stages import (
    assign_unit,
    pack_clusters,
    train_centroids,
    walk_clusters,
)
from pipelines.engines.window_stages import (
    HASH_BYTES,
    REGION_BYTES,
    REPEATED_BYTES,
    cut_unit,
    gather_unit,
    repeated_bucket,
    window_part,
)
from pipelines.global_step import PairStep, VectorStep
from pipelines.progress import Bar, progress, say
from pipelines.span_step import PieceStep, WindowStep

PARENT_BYTES = 250 << 20
"""Proportional set size of the parent and the fork server."""
WORKER_BYTES = 500 << 20
"""Peak of one worker above that: libraries, one batch of 8 MB in all its forms, one writer."""
TICK_S = 0.2
COMPILING_AFTER_S = 8.0
KEY_COPIES = 4
"""Gathering, sorting and deciding a bucket takes about four times the keys themselves."""

_job: Job | None = None
_stop: Any = None


class LocalEngine:
    """Runs stages in processes. Use it as a context manager.

    Raises:
        ValueError: the memory is less than one worker needs.
    """

    def __init__(self, job: Job, workers: int, memory: int) -> None:
        least = PARENT_BYTES + WORKER_BYTES
        if memory < least:
            raise ValueError(
                f"--memory is {memory >> 20} MiB; one worker needs {least >> 20} MiB. "
                f"Give at least --memory {least >> 20}MiB."
            )
        self.workers = max(1, min(workers, (memory - PARENT_BYTES) // WORKER_BYTES))
        self.worker_memory = (memory - PARENT_BYTES) // self.workers
        """Bytes that one worker may use."""
        context = multiprocessing.get_context("forkserver")
        parts = (*job.recipe.readers, *job.recipe.steps)
        fork_server.start({type(part).__module__ for part in parts})
        self._job, self._stop = job, context.Event()
        self._pool = ProcessPoolExecutor(
            self.workers, context, initializer=_start, initargs=(job, self._stop)
        )

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def warm_up(self, stage: Callable[[Job], None]) -> None:
        """Runs a stage once before all others, so that only one worker compiles."""
        future = self._submit(stage, ())
        if wait([future], COMPILING_AFTER_S).not_done:
            say("compiling the text kernels: only on the first run, about a minute")
        future.result()

    def each(
        self,
        stage: Callable[..., Any],
        items: Sequence[tuple[Any, ...]],
        amounts: Sequence[int],
        bar: Bar,
    ) -> list[Any]:
        """Runs `stage(job, *item)` for every item and returns the results in order.

        Args:
            stage: a function of pipelines.engines.stages.
            items: the arguments after the job.
            amounts: how far each item moves the bar.
            bar: shows the progress.

        Raises:
            RuntimeError: a worker died; what it had finished is kept.
            OSError: a file could not be read or written, for example because the disk is full.
        """
        futures = {self._submit(stage, item): i for i, item in enumerate(items)}
        results: list[Any] = [None] * len(items)
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, TICK_S, FIRST_COMPLETED)
                bar.advance(0)
                for future in finished:
                    results[futures[future]] = future.result()
                    bar.advance(amounts[futures[future]])
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died, most likely killed because the machine ran out of memory. "
                "Run the same command again to continue; fewer --workers need less memory."
            ) from error
        return results

    def _submit(self, stage: Callable[..., Any], item: tuple[Any, ...]) -> Future[Any]:
        with fork_server.interrupts_wait():  # it may start a worker
            return self._pool.submit(_call, stage, item)

    def decide(self, phase: int, num_keys: int) -> None:
        """Decides the documents of the global step that ends a phase."""
        if verdicts_complete(self._job.verdicts(phase)):
            return
        match self._job.global_step(phase):
            case PairStep():
                self._compare(phase, num_keys)
            case VectorStep():
                self._cluster(phase)
            case PieceStep():
                self._in_buckets(phase, num_keys * MARK_BYTES, piece_bucket)
            case WindowStep():
                self._cut_windows(phase, num_keys)
            case _:
                self._in_buckets(phase, num_keys * KEY_BYTES, group_bucket)
        mark_complete(self._job.verdicts(phase))
        shutil.rmtree(self._job.regions(phase), ignore_errors=True)

    def _in_buckets(self, phase: int, key_bytes: int, stage: Callable[..., None]) -> None:
        name, needed = self._job.global_step(phase).name, key_bytes * KEY_COPIES
        buckets = _settled(self._job.verdicts(phase), 1 + needed // self.worker_memory)
        with progress(f"group ({name})", buckets, "bucket") as bar:
            items = [(phase, bucket, buckets) for bucket in range(buckets)]
            self.each(stage, items, [1] * buckets, bar)

    def _cut_windows(self, phase: int, num_marks: int) -> None:
        job, name = self._job, self._job.global_step(phase).name
        sizes = [unit.size for unit in job.plan.units]
        units, room = range(len(sizes)), self.worker_memory // 2
        buckets = _settled(job.regions(phase) / "repeated", 1 + num_marks * HASH_BYTES // room)
        with progress(f"repeated marks ({name})", buckets, "bucket") as bar:
            items = [(phase, bucket, buckets) for bucket in range(buckets)]
            self.each(repeated_bucket, items, [1] * buckets, bar)
        with progress(f"gather regions ({name})", sum(sizes), "B") as bar:
            found = self.each(gather_unit, [(phase, u, buckets) for u in units], sizes, bar)
        marks, size = (sum(column) for column in zip(*found, strict=True))
        needed = marks * REPEATED_BYTES + size * REGION_BYTES
        parts = _settled(job.regions(phase) / "runs", 1 + needed // room)
        with progress(f"compare regions ({name})", parts, "part") as bar:
            self.each(window_part, [(phase, p, parts) for p in range(parts)], [1] * parts, bar)
        with progress(f"cut ({name})", sum(sizes), "B") as bar:
            self.each(cut_unit, [(phase, unit) for unit in units], sizes, bar)

    def _compare(self, phase: int, num_keys: int) -> None:
        job, plan = self._job, self._job.plan
        name = job.global_step(phase).name
        needed = band_parts(job, phase, num_keys, self.worker_memory)
        parts = _settled(job.links(phase), needed)
        num_bands = load_array(job.phase_folder(phase, 0), "group").shape[1]
        bands = [(phase, band, part) for band in range(num_bands) for part in range(parts)]
        with progress(f"link ({name})", 2 * len(bands) + 2, "task") as bar:
            self.each(populate, [(phase,)], [1], bar)
            self.each(link_band, [(*band, parts) for band in bands], [1] * len(bands), bar)
            (packages,) = self.each(link, [(phase, self.worker_memory)], [1], bar)
            self.each(spread_band, bands, [1] * len(bands), bar)
        with progress(f"gather sets ({name})", plan.size, "B") as bar:
            items = [(phase, unit) for unit in range(len(plan.units))]
            self.each(set_unit, items, [unit.size for unit in plan.units], bar)
        with progress(f"compare ({name})", packages, "package") as bar:
            items = [(phase, package, self.worker_memory) for package in range(packages)]
            self.each(walk_package, items, [1] * packages, bar)
        if job.first:
            with progress(f"carry over ({name})", job.first, "unit") as bar:
                items = [(phase, unit) for unit in range(job.first)]
                self.each(carry_unit, items, [1] * job.first, bar)

    def _cluster(self, phase: int) -> None:
        job, plan = self._job, self._job.plan
        name = job.global_step(phase).name
        with progress(f"train centroids ({name})", 1, "task") as bar:
            self.each(train_centroids, [(phase, self.worker_memory)], [1], bar)
        with progress(f"assign ({name})", plan.size, "B") as bar:
            items = [(phase, unit) for unit in range(len(plan.units))]
            self.each(assign_unit, items, [unit.size for unit in plan.units], bar)
            (packages,) = self.each(pack_clusters, [(phase,)], [0], bar)
        with progress(f"compare ({name})", packages, "package") as bar:
            items = [(phase, package, self.worker_memory) for package in range(packages)]
            self.each(walk_clusters, items, [1] * packages, bar)


def _settled(folder: Path, enough: int) -> int:
    """Returns into how many parts the work in a folder goes: enough, and those of earlier runs."""
    path = folder / "parts"
    if path.exists() and int(path.read_text("utf-8")) < enough:
        shutil.rmtree(folder)
    if not path.exists():
        with written(path) as temporary:
            temporary.write_text(str(enough), "utf-8")
    return int(path.read_text("utf-8"))


def _start(job: Job, stop: Any) -> None:
    global _job, _stop  # what the pool gives to a worker once, not with every item
    _job, _stop = job, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    gc.enable()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a worker of the local engine was started outside a pool")
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _call(stage: Callable[..., Any], item: tuple[Any, ...]) -> Any:
    if _stop.is_set():
        raise RuntimeError("the run was stopped")
    return stage(_job, *item)
