"""The Spark engine: the same stages on executors, and global steps as Spark joins.

What moves through Spark is small: descriptors of work units, keys, hashes and ids. Executors open
the sources with our readers and write every file with pyarrow, so the bytes are those of the local
engine. Executors and driver need the output folder under the same path (a shared file system) and
the same Python packages. How much memory a task has is a setting of Spark.
"""

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

try:
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql import functions as f
except ModuleNotFoundError as error:
    raise ValueError(
        "--engine spark needs pyspark, which is not installed; install gristmill with its extra "
        "`spark`: pip install 'gristmill[spark]'"
    ) from error

from pipelines.engines import spark_tasks as tasks
from pipelines.engines.job import Job
from pipelines.engines.phase_files import mark_complete, verdicts_complete
from pipelines.global_step import GroupStep, PairStep, verdict_schema
from pipelines.progress import Bar, progress
from pipelines.span_step import PieceStep

POLL_S = 0.5
LOOPBACK = ("127.0.0.1", "localhost")
KEY = ["band", "hash"]


class SparkEngine:
    """Runs stages as Spark tasks. Use it as a context manager.

    Args:
        job: the job.
        master: "local[2]", "spark://host:7077", "yarn", "k8s://..."; as spark-submit takes it.

    Raises:
        RuntimeError: a task failed or Spark could not be started.
    """

    def __init__(self, job: Job, master: str) -> None:
        self._job, self._master = job, master

    def __enter__(self) -> "SparkEngine":
        os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
        paths = os.pathsep.join(dict.fromkeys(path or os.getcwd() for path in sys.path))
        builder = (
            SparkSession.builder.master(self._master)
            .appName(f"gristmill curate {self._job.recipe.name}")
            .config("spark.log.level", "ERROR")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.executorEnv.PYTHONPATH", paths)
            .config("spark.python.worker.reuse", "true")
        )
        if self._master.startswith("local") or urlsplit(self._master).hostname in LOOPBACK:
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
            builder = builder.config("spark.driver.host", "127.0.0.1")
            builder = builder.config("spark.driver.bindAddress", "127.0.0.1")
            builder = builder.config("spark.ui.enabled", "false")
        with progress(f"spark ({self._master})", 1, "session") as bar, _Errors():
            self._spark = builder.getOrCreate()
            bar.advance(1)
        self._context = self._spark.sparkContext
        self._shared = self._context.broadcast(self._job)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._spark.stop()

    def warm_up(self, stage: Callable[[Job], None]) -> None:
        """Runs a stage once before all others, so that only one task compiles."""
        with progress("compile or load the text kernels", 1, "task") as bar:
            self.each(stage, [()], [1], bar)

    def each(
        self,
        stage: Callable[..., Any],
        items: Sequence[tuple[Any, ...]],
        amounts: Sequence[int],
        bar: Bar,
    ) -> list[Any]:
        """Runs `stage(job, *item)` for every item, a task each; returns the results in order.

        Args:
            stage: a function of pipelines.engines.stages.
            items: the arguments after the job.
            amounts: how far each item moves the bar.
            bar: shows the progress.

        Raises:
            RuntimeError: a task failed; what others had finished is kept.
        """
        if not items:
            return []
        done = self._context.accumulator(0)
        numbered = [
            (n, item, amount) for n, (item, amount) in enumerate(zip(items, amounts, strict=True))
        ]
        run = tasks.Call(stage, self._shared, done)
        job = self._context.parallelize(numbered, len(numbered)).map(run)
        with _Moving(bar, done), _Errors():
            results = dict(job.collect())
        return [results[n] for n in range(len(items))]

    def decide(self, phase: int, num_keys: int) -> None:
        """Decides the documents of the global step that ends a phase."""
        job = self._job
        if verdicts_complete(job.verdicts(phase)):
            return
        step = job.global_step(phase)
        folder = job.verdicts(phase)
        aside = folder.with_name(f".tmp-spark-{folder.name}")
        for old in (folder, aside):
            shutil.rmtree(old, ignore_errors=True)
        aside.mkdir(parents=True)
        with _Errors():
            kinds = {PairStep: self._compare, PieceStep: self._cut_pieces}
            decide = next((d for kind, d in kinds.items() if isinstance(step, kind)), self._group)
            with progress(f"decide ({step.name}, {num_keys:,} documents)", 1, "step") as bar:
                by_unit = decide(phase, aside).repartition("unit")
                written = by_unit.mapInArrow(
                    tasks.WriteVerdicts(str(aside), verdict_schema(step)), "rows long"
                )
                written.agg({"rows": "sum"}).collect()
                bar.advance(1)
        for path in aside.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        mark_complete(aside)
        aside.replace(folder)

    def _units(self) -> DataFrame:
        units = len(self._job.plan.units)
        return self._spark.range(0, units, 1, units).withColumnRenamed("id", "unit")

    def _group(self, phase: int, folder: Path) -> DataFrame:
        """Brings equal groups together by a shuffle; the step decides each partition."""
        step = self._job.global_step(phase)
        assert isinstance(step, GroupStep)
        read = tasks.GroupKeys(self._shared, phase)
        keys = self._units().mapInArrow(read, tasks.GROUP_KEY_COLUMNS)
        together = keys.repartition("group_0", "group_1")
        return together.mapInArrow(tasks.Decide(step), tasks.VERDICT_COLUMNS)

    def _cut_pieces(self, phase: int, folder: Path) -> DataFrame:
        """Brings pieces of equal hash together by a shuffle; the step decides each partition."""
        step = self._job.global_step(phase)
        assert isinstance(step, PieceStep)
        read = tasks.PieceMarks(self._shared, phase)
        pieces = self._units().mapInArrow(read, tasks.PIECE_COLUMNS)
        together = pieces.repartition("hash_0", "hash_1")
        return together.mapInArrow(tasks.DecidePieces(step), tasks.SPAN_COLUMNS)

    def _compare(self, phase: int, folder: Path) -> DataFrame:
        """Brings the documents that share keys together, component by component, and walks them."""
        read = tasks.BandKeys(self._shared, phase)
        keys = self._units().mapInArrow(read, tasks.BAND_KEY_COLUMNS)
        groups = keys.groupBy(*KEY).agg(f.count("*").alias("n")).where("n > 1")
        members = keys.join(groups.drop("n"), KEY)
        members = self._kept(members, folder / "members")
        candidates = members.select("doc", f.shiftright("doc", tasks.ROW_BITS).alias("unit"))
        by_unit = candidates.distinct().groupBy("unit")
        write = tasks.Sets(self._shared, phase)
        sets = by_unit.applyInArrow(lambda unit: write(unit), "doc long")  # Spark counts parameters
        sets.agg({"doc": "sum"}).collect()
        labels = self._components(members.drop("place"), folder)
        together = members.join(labels, "doc").repartition("label")
        return together.mapInArrow(tasks.Walk(self._shared, phase), tasks.VERDICT_COLUMNS)

    def _kept(self, frame: DataFrame, path: Path) -> DataFrame:
        """Writes a frame, so that what follows does not compute it again."""
        frame.write.parquet(str(path))
        return self._spark.read.parquet(str(path))

    def _components(self, members: DataFrame, folder: Path) -> DataFrame:
        """Labels each document with the smallest one of its component, in rounds.

        In a round a document takes the smallest label of its groups, and then that document's own
        label: how far labels travel doubles, so a chain of n documents takes some log2 n rounds.
        """
        labels = members.groupBy("doc").agg(f.min("doc").alias("label"))
        number = 0
        while True:
            low = members.join(labels, "doc").groupBy(*KEY).agg(f.min("label").alias("low"))
            nearest = members.join(low, KEY).groupBy("doc").agg(f.min("low").alias("near"))
            nearest = self._kept(nearest, folder / f"nearest-{number}")
            further = nearest.select(f.col("doc").alias("near"), f.col("near").alias("label"))
            moved = nearest.join(further, "near").select("doc", "label")
            moved = self._kept(moved, folder / f"labels-{number}")
            changed = moved.join(labels.withColumnRenamed("label", "before"), "doc")
            if changed.where("label <> before").isEmpty():
                return moved
            labels = moved
            number += 1


class _Moving:
    """Moves the bar while Spark works, by what the tasks have added to an accumulator."""

    def __init__(self, bar: Bar, done: Any) -> None:
        self._bar, self._done, self._seen = bar, done, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._move()

    def _watch(self) -> None:
        while not self._end.wait(POLL_S):
            self._move()

    def _move(self) -> None:
        value = self._done.value
        self._bar.advance(value - self._seen)
        self._seen = value


class _Errors:
    """Turns Spark's errors into a RuntimeError that says what the task said."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (Py4JJavaError, PySparkException)):
            raise RuntimeError(f"spark: {_reason(str(error))}") from error


def _reason(text: str) -> str:
    """Returns the last Python error of a task's trace, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in _after_traces(lines) if "Error: " in line]
    return named[-1] if named else lines[0] if lines else "it failed without a message"


def _after_traces(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith(("File ", "at ", "org.apache", "java.", "py4j", "Caused by")):
            yield line
