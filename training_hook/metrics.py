"""What a run measured: one row a step, one row for each held-out part of an evaluation, as Parquet.

Parts under `metrics/` are named by their first step. The open part is rewritten whole, aside and
renamed, every few seconds, and closed at each checkpoint; so a kill -9 loses seconds of curve, a
year of training makes one file a checkpoint, and going back to a checkpoint means removing or
cutting whole files. What is recorded about a step decides nothing: a lost row is made again, with
the same loss.

Model FLOPs utilization is tokens per second * 3 * forward FLOPs per token / peak. The forward FLOPs
(`training_hook.model.forward_flops`) are 2 for each weight of a matrix product, head included and
embeddings not, those of the scans and of causal attention; a backward pass counts twice as many.
Norms, convolutions and what is computed again count nothing. The peak is the board's dense BF16
rate (`training_hook.device.PEAK_FLOPS`), for FP8 runs, too, so one number compares them all.
Energy is the GPU board's alone: CPU, host and network are not in it.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.atomic import sweep, written

FOLDER = "metrics"
FLUSH_INTERVAL_S = 5.0

STEPS = pa.schema(
    [
        ("step", pa.int64()),  # counted from 1
        ("loss", pa.float64()),  # nats for each target token of the global batch, mean
        ("loss_by_part", pa.map_(pa.string(), pa.float64())),  # of the mixture; those in the step
        ("learning_rate", pa.float64()),
        ("gradient_norm", pa.float64()),  # before clipping
        ("skipped", pa.bool_()),  # the update was left out: seen, not learnt from
        ("tokens", pa.int64()),  # input tokens since the start of the run, padding included
        ("target_tokens", pa.int64()),  # of this step: what the loss is the mean of
        ("first_sample", pa.int64()),  # global index in the stream: which documents were seen
        ("samples", pa.int64()),
        ("seconds", pa.float64()),  # of this step; mean over a reporting interval on a GPU
        ("tokens_per_second", pa.float64()),
        ("mfu", pa.float64()),  # model FLOPs utilization, as above; null if the peak is not known
        ("joules", pa.float64()),  # of this step, the GPU board's; null without NVML
        ("memory_bytes", pa.int64()),  # the allocator's peak so far; null on a CPU
    ]
)

EVALUATIONS = pa.schema(
    [
        ("step", pa.int64()),
        ("part", pa.string()),
        ("documents", pa.int64()),
        ("tokens", pa.int64()),  # scored, end-of-document tokens included
        ("bytes", pa.int64()),  # UTF-8, of the documents
        ("nats", pa.float64()),  # summed negative log-likelihood
        ("bits_per_byte", pa.float64()),
    ]
)


class MetricsWriter:
    """Appends rows to a run's metrics. Only one may be open for a folder.

    Args:
        out: the run's output folder.
        step: the checkpoint that the run goes on from, 0 for a new one; later rows are removed.
    """

    def __init__(self, out: Path, step: int) -> None:
        self._folder = out / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        sweep(self._folder)
        for path in _parts(out, "steps"):
            kept = pq.read_table(path, schema=STEPS).filter(pc.field("step") <= step)
            if kept.num_rows:
                _replace(kept, path)
            else:
                path.unlink()
        for path in _parts(out, "evaluation"):
            if _first_step(path) > step:
                path.unlink()

    def add(self, row: dict[str, Any]) -> None:
        """Adds one step's row and writes the open part where it is time."""
        self._rows.append(row)
        if time.monotonic() - self._flushed >= FLUSH_INTERVAL_S:
            self.flush()

    def add_evaluation(self, step: int, rows: Iterable[dict[str, Any]]) -> None:
        """Writes the evaluation of one step at once."""
        table = pa.Table.from_pylist([{"step": step, **row} for row in rows], EVALUATIONS)
        _replace(table, self._evaluation(step))

    def has_evaluation(self, step: int) -> bool:
        """Says whether the evaluation of a step is there."""
        return self._evaluation(step).exists()

    def flush(self) -> None:
        """Writes the open part."""
        if self._rows:
            table = pa.Table.from_pylist(self._rows, STEPS)
            _replace(table, self._folder / f"steps-{self._rows[0]['step']:08d}.parquet")
        self._flushed = time.monotonic()

    def close_part(self) -> None:
        """Writes the open part for good: called before a checkpoint is saved."""
        self.flush()
        self._rows = []

    def _evaluation(self, step: int) -> Path:
        return self._folder / f"evaluation-{step:08d}.parquet"


def read_metrics(out: Path) -> pa.Table:
    """Returns the rows of all steps (schema STEPS), ascending; empty where nothing was written."""
    tables = [pq.read_table(path, schema=STEPS) for path in _parts(out, "steps")]
    return pa.concat_tables(tables) if tables else STEPS.empty_table()


def read_evaluations(out: Path) -> pa.Table:
    """Returns the rows of all evaluations (schema EVALUATIONS), ascending by step."""
    tables = [pq.read_table(path, schema=EVALUATIONS) for path in _parts(out, "evaluation")]
    return pa.concat_tables(tables) if tables else EVALUATIONS.empty_table()


def _parts(out: Path, kind: str) -> list[Path]:
    return sorted((out / FOLDER).glob(f"{kind}-*.parquet"), key=_first_step)


def _first_step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _replace(table: pa.Table, path: Path) -> None:
    with written(path) as temporary:
        pq.write_table(table, temporary)
