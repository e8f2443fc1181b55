import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.curves import curve_plot
from flows.live_report import HOST, Handler, LiveReport, open_server
from flows.report import write_report
from flows.runs.hybrid_20m import run as training_run
from flows.training_report import loss_lines
from mixtures.artifact import exclusive, is_held
from pipelines.dataset import write_json
from tests.training_hook.small_corpus import make_corpus, tiny_run
from training_hook.evaluation.bits_per_byte import PartScore
from training_hook.metrics import STEPS, MetricsWriter

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
ROOT = Path(__file__).parents[2]
GPU = {"mfu": 0.42, "joules": 900.0, "memory_bytes": 39 << 30}


def add_step(metrics: MetricsWriter, step: int, **changes: Any) -> None:
    run = training_run()
    loss = 3 + 6 * math.exp(-step / 50)
    row = {
        "step": step,
        "loss": loss,
        "loss_by_part": {"code": loss - 1, "<prose>": loss + 1},
        "learning_rate": run.schedule.learning_rate(step),
        "gradient_norm": 1 / step,
        "skipped": False,
        "tokens": step * run.tokens_per_step,
        "target_tokens": run.tokens_per_step,
        "first_sample": 0,
        "samples": run.batch_size,
        "seconds": 2.0,
        "tokens_per_second": run.tokens_per_step / 2.0,
    }
    metrics.add(row | changes)
    metrics.flush()


def add_evaluation(metrics: MetricsWriter, step: int, bits: float) -> None:
    nats = bits * math.log(2) * 1000
    scores = [PartScore("code", 5, 300, 1000, nats), PartScore("<prose>", 5, 300, 3000, nats)]
    metrics.add_evaluation(step, [score.row() for score in scores])


def begin(folder: Path) -> MetricsWriter:
    metrics = MetricsWriter(folder, 0)
    write_json(folder / "run.json", {"run": training_run().parameters()})
    return metrics


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Answers requests in a thread; yields the address."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(address: str, **headers: str) -> str:
    with urlopen(Request(address, headers=headers), timeout=60) as answer:
        return answer.read().decode()


def data_of(address: str) -> dict[str, Any]:
    return json.loads(get(f"{address}data.json"))


def test_live_report_follows_the_run(tmp_path: Path) -> None:
    metrics = begin(tmp_path)
    with serving(open_server(tmp_path, 0)) as address:
        assert "No two steps have been recorded yet" in get(address)
        assert data_of(address)["progress"]["step"] == 0
        for step in range(1, 4):
            add_step(metrics, step)
        first = data_of(address)
        assert (first["run"], first["progress"]["step"]) == ("hybrid_20m", 3)
        assert first["progress"]["seconds_left"] == 2.0 * (first["progress"]["total_steps"] - 3)
        add_step(metrics, 4, skipped=True, gradient_norm=math.inf, loss=math.nan, **GPU)
        for step, bits in ((0, 4.0), (2, 3.0), (4, 2.0)):
            add_evaluation(metrics, step, bits)
        metrics.close_part()
        saved = tmp_path / "checkpoints" / "step-00000004"
        saved.mkdir(parents=True)
        write_json(saved / "manifest.json", {"step": 4, "files": {"a": 1000, "b": 500}})
        second = data_of(address)
        assert second["version"] != first["version"]
        assert second["progress"]["step"] == 4
        assert second["progress"]["skipped"] == 1
        assert second["progress"]["last"]["loss"] is None  # JSON has no NaN
        assert second["held_out"][-1]["after"] == pytest.approx(2.0 * 2 / 4)
        assert second["checkpoints"] == [
            {"step": 4, "bytes": 1500, "place": "checkpoints/step-00000004"}
        ]
        html = second["html"]
        for words in (
            "loss, nats per token",
            "learning rate",
            "gradient norm",
            "1 step not learnt from",
            "tokens per second",
            "model FLOPs utilization, percent",
            "3 * forward FLOPs per token / the board's dense BF16 peak",
            "peak memory, GiB",
            "board energy, joules per 1,000 tokens",
            "held-out bits per byte",
            "&lt;prose&gt;",
            "checkpoints/step-00000004",
        ):
            assert words in html
        assert "<prose>" not in html
        assert data_of(address)["version"] == second["version"]


def test_live_page_is_self_contained_and_for_this_machine_only(tmp_path: Path) -> None:
    begin(tmp_path)
    with serving(open_server(tmp_path, 0)) as address:
        page = get(address)
        assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)
        assert not re.findall(r"https?://", page)
        assert page.count("<script>") == 1
        port = address.rstrip("/").rpartition(":")[2]
        assert get(address, Host=f"localhost:{port}") == page
        for headers, path, status in (({"Host": "evil.example:80"}, "", 403), ({}, "etc", 404)):
            with pytest.raises(HTTPError) as failed:
                get(address + path, **headers)
            assert failed.value.code == status
            failed.value.close()
        assert open_server(tmp_path, 0).server_close() is None
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 cannot be used"):
            open_server(tmp_path, int(port))


def test_live_state_is_what_the_run_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    add_step(begin(folder), 1)
    report = LiveReport(folder)
    assert report.data()["state"] == "not running"
    assert re.search(r"no process .* last written .* ago", report.data()["about"])
    assert not is_held(folder)
    with exclusive(folder):
        assert is_held(folder)
        assert report.data()["state"] == "running"
    (folder.parent / ".run.lock").touch()  # what a killed one leaves
    assert report.data()["state"] == "not running"
    write_json(folder / "manifest.json", {"name": "over"})
    assert report.data()["state"] == "finished"


def test_live_report_that_cannot_be_read_says_why(tmp_path: Path, capsys) -> None:
    add_step(begin(tmp_path), 1)
    note = tmp_path / "run.json"
    content = note.read_text()
    with serving(open_server(tmp_path, 0)) as address:
        for damage, status, words in (
            (note.unlink, 503, "run.json went away while it was read"),
            (lambda: note.write_text('{"run'), 500, "JSONDecodeError"),
        ):
            damage()
            with pytest.raises(HTTPError) as failed:
                data_of(address)
            assert (failed.value.code, words in failed.value.read().decode()) == (status, True)
            failed.value.close()
        note.write_text(content)
        assert data_of(address)["progress"]["step"] == 1
    assert "JSONDecodeError" in capsys.readouterr().err  # the terminal has the whole story


def test_live_report_of_no_run_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*/absent; wanted"):
        open_server(tmp_path / "absent", 0)
    with pytest.raises(ValueError, match=r"has no run\.json, so it is no training run\. Give"):
        open_server(tmp_path, 0)
    begin(tmp_path / "training")
    with pytest.raises(ValueError, match="there are runs below it: training"):
        open_server(tmp_path, 0)


def test_report_of_a_training_run_alone_is_static(tmp_path: Path) -> None:
    metrics = begin(tmp_path)
    for step in (1, 2):
        add_step(metrics, step)
    page = write_report(tmp_path).read_text("utf-8")
    assert "<script" not in page
    assert "step 2 of" in page
    assert "Not measured here: model FLOPs utilization, memory, energy (of a GPU only)." in page
    assert write_report(tmp_path).read_text("utf-8") == page


class Growing(LiveReport):
    """A run that does one more step as soon as its page was asked for."""

    def __init__(self, folder: Path, metrics: MetricsWriter) -> None:
        super().__init__(folder)
        self._metrics = metrics

    def page(self) -> str:
        """Returns the page of three steps."""
        text = super().page()
        add_step(self._metrics, 4)
        return text


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; apt-get install chromium")
def test_live_page_in_a_browser_shows_a_new_step_by_itself(tmp_path: Path) -> None:
    metrics = begin(tmp_path / "run")
    for step in range(1, 4):
        add_step(metrics, step)
    growing = Growing(tmp_path / "run", metrics)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=9000"]
    with serving(ThreadingHTTPServer((HOST, 0), partial(Handler, growing))) as address:
        done = subprocess.run(
            [str(CHROMIUM), *options, "--enable-logging=stderr", address],
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert "CONSOLE" not in done.stderr
    assert "step 4 of" in done.stdout
    assert "step 3 of" not in done.stdout
    assert '<b id="state">not running</b>' in done.stdout


TRAIN = """
from pathlib import Path
import torch
from training_hook.config import HybridConfig
from training_hook.pretrain import pretrain
from training_hook.run import PretrainRun
torch.set_num_threads(1)
pretrain({run!r}, Path({mixture!r}), Path({out!r}))
"""


@pytest.mark.slow
def test_live_report_of_a_real_run_shows_its_steps(tmp_path: Path) -> None:
    """The command serves while another process trains; that one stopped, it says so."""
    corpus = make_corpus(tmp_path)
    run = tiny_run(total_tokens=1500 * 4 * 48, evaluation_interval=10_000, checkpoint_interval=50)
    code = TRAIN.format(run=run, mixture=str(corpus / "mixture"), out=str(tmp_path / "run"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    trainer = subprocess.Popen([sys.executable, "-c", code], env=environment)
    note = tmp_path / "run" / "run.json"
    try:
        while not note.exists():
            assert trainer.poll() is None
            time.sleep(0.05)
        command = [sys.executable, "-m", "flows.cli", "report", str(tmp_path / "run"), "--live"]
        server = subprocess.Popen(
            [*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        assert "gristmill report" in get(address)
        seen: list[int] = []
        while len(set(seen)) < 3:
            data = data_of(address)
            assert data["state"] == "running"
            seen.append(data["progress"]["step"])
            time.sleep(0.2)
        assert seen == sorted(seen)
    finally:
        trainer.send_signal(signal.SIGTERM)
        trainer.wait()
    last = data_of(address)
    assert (last["state"], trainer.returncode) == ("not running", 0)
    assert last["checkpoints"][-1]["step"] == last["progress"]["step"] >= seen[-1]
    server.send_signal(signal.SIGINT)
    assert server.wait() == 0
    server.stdout.close()


rows = st.lists(
    st.none() | st.dictionaries(st.sampled_from("abc"), st.floats(-9, 9), max_size=3), max_size=9
)


@given(rows, rows.filter(bool), st.integers(0, 5))
def test_losses_by_part_are_those_of_the_rows(
    first: list[dict[str, float] | None], second: list[dict[str, float] | None], start: int
) -> None:
    tables = [
        pa.Table.from_pylist([{"step": 1, "loss_by_part": row} for row in part], STEPS)
        for part in (first, second)
    ]
    steps = pa.concat_tables(tables).slice(start)
    kept = [row or {} for row in (*first, *second)][start:]
    if not kept:
        return
    lines = loss_lines(steps, np.arange(float(len(kept))))
    parts = {name for row in kept for name in row}
    assert lines.keys() - {"all parts"} == (parts if len(parts) > 1 else set())
    for name in parts & lines.keys():
        wanted = [row.get(name, math.nan) for row in kept]
        assert np.array_equal(lines[name][1], wanted, equal_nan=True)


lines = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=30),
    max_size=8,
)


@given(lines, st.lists(st.tuples(st.floats(0, 50), st.floats()), max_size=5))
def test_curves_stay_on_the_plot_and_leave_out_what_is_no_number(
    given_lines: dict[str, list[float]], marks: list[tuple[float, float]]
) -> None:
    marks = [(x, y if abs(y) < 1e6 else math.inf) for x, y in marks]
    arrays = {
        name: (np.arange(float(len(y))), np.array(y, float)) for name, y in given_lines.items()
    }
    plot = curve_plot(arrays, "any", marks)
    finite = {name for name, (_, y) in arrays.items() if np.isfinite(y).any()}
    if plot is None:
        assert not finite
        return
    assert {line["name"] for line in plot["lines"]} == finite
    places = [
        tuple(map(float, pair.split(",")))
        for line in plot["lines"]
        for pair in f"{line['line']} {line['band']}".split()
    ]
    places += [(mark["x"], mark["y"]) for mark in plot["marks"]]
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in places)
    assert len(plot["marks"]) == len(marks)
