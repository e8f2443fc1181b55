"""Law 3 for the Spark engine: the bytes of the local engine, on threads and on a real cluster."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.laws.harness import RECIPES, ROOT, digest, run

pyspark = pytest.importorskip("pyspark")

CurateOn = Callable[[str, str, list[str], Path], subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def curate_on(tmp_path_factory) -> Iterator[CurateOn]:
    """A function (master, recipe, sources, output) that curates in a driver that all tests share.

    A JVM takes 10 s to start, and its first run takes twice as long as the next one.
    """
    printed = tmp_path_factory.mktemp("driver") / "printed"
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.laws.spark_driver"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None
    assert driver.stdout is not None

    def curate(master: str, recipe: str, arguments: list[str], out: Path):
        engine = ("--engine", "spark", "--master", master)
        command = ["curate", f"{RECIPES}:{recipe}", *arguments, "--out", str(out), *engine]
        print(json.dumps([str(printed), *command]), file=driver.stdin, flush=True)
        code = driver.stdout.readline()
        assert code, printed.read_text()  # it ended
        return subprocess.CompletedProcess(command, int(code), stderr=printed.read_text())

    yield curate
    driver.communicate(timeout=60)  # the end of its input
    assert driver.returncode == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the Spark process ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.fixture
def cluster(tmp_path) -> Iterator[str]:
    """A standalone master and a worker on loopback; yields the master's URL."""
    home = Path(pyspark.__file__).parent
    port, ui, worker_port, worker_ui = (free_port() for _ in range(4))
    common = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1", "SPARK_HOME": str(home)}
    environment = os.environ | common | {"PYSPARK_PYTHON": sys.executable}
    start = [str(home / "bin" / "spark-class")]
    url = f"spark://127.0.0.1:{port}"
    master = ["org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", str(port)]
    worker = ["org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "-c", "2", "-m", "2g"]
    commands = [
        [*master, "--webui-port", str(ui)],
        [*worker, "--port", str(worker_port), "--webui-port", str(worker_ui), url],
    ]
    processes = []
    with (tmp_path / "spark.log").open("wb") as log:
        try:
            for command, listens in zip(commands, (port, worker_port), strict=True):
                process = subprocess.Popen(
                    start + command, stdout=log, stderr=log, env=environment, cwd=tmp_path
                )
                processes.append(process)
                wait_for_port(listens, process)
            yield url
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(60)


@pytest.mark.slow
def test_a_standalone_cluster_gives_the_same_bytes(curate_on, cluster, corpus, reference, tmp_path):
    result = curate_on(cluster, "small", corpus, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert digest(tmp_path / "out") == digest(reference)


@pytest.mark.slow
def test_local_threads_give_the_same_bytes(curate_on, corpus, reference, tmp_path):
    out = tmp_path / "out"
    result = curate_on("local[2]", "small", corpus, out)
    assert result.returncode == 0, result.stderr
    assert digest(out) == digest(reference)


@pytest.mark.slow
def test_pieces_are_cut_on_threads_as_by_the_local_engine(curate_on, corpus, tmp_path):
    alone = run("curate", f"{RECIPES}:pieces", *corpus, "--out", str(tmp_path / "local"))
    assert alone.returncode == 0, alone.stderr
    result = curate_on("local[2]", "pieces", corpus, tmp_path / "spark")
    assert result.returncode == 0, result.stderr
    assert digest(tmp_path / "spark") == digest(tmp_path / "local")


@pytest.mark.slow
def test_what_runs_on_the_local_engine_only_is_refused_before_anything_moves(
    curate_on, corpus, tmp_path
):
    result = curate_on("local[2]", "spans", corpus, tmp_path / "out")
    assert result.returncode == 2
    assert "SubstringDedup does not run on the spark engine" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_failing_task_says_what_it_said(curate_on, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_text('{"text": "one"}\n')
    result = curate_on("local[1]", "failing", ["--source", f"s={source}"], tmp_path / "out")
    assert result.returncode == 1
    assert "spark: RuntimeError: Broken made 0 rows of 1" in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
