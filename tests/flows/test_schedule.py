import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows import prefect_settings
from flows.dates import dated, fill

ROOT = Path(__file__).parents[2]
MOMENT = datetime(2026, 11, 23, 4, 5, tzinfo=UTC)
CURATE = {"recipe": "flows.recipes.web:english_web", "out": "web"}
# What a user does: a schedule of curate, and a look at what is there.
SCHEDULE = """
import json, sys
from flows.schedule import read_parameters, schedule, schedules
flow, cron, name, *parameters = sys.argv[1:]
made = schedule(flow, cron, read_parameters(flow, parameters), name=name)
json.dump({"made": made, "listed": schedules()}, sys.stdout)
"""
UNSCHEDULE = """
import json, sys
from flows.schedule import schedules, unschedule
json.dump([unschedule(sys.argv[1]), schedules()], sys.stdout)
"""


@pytest.fixture(scope="module")
def module():
    from flows import schedule

    return schedule


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flow": "curat"}, "no flow 'curat'; flows: compact, curate, "),
        ({"cron": "* * * *"}, "cron is '\\* \\* \\* \\*'; wanted minute"),
        ({"cron": "61 * * * *"}, "cron is '61 .*for example"),
        ({"cron": "0 3 * * * *"}, "cron is"),
        ({"cron": "@daily"}, "cron is"),
        ({"timezone": "Mars/Olympus"}, "timezone is 'Mars/Olympus'.*Europe/Zurich"),
        ({"name": "a/b"}, "name is 'a/b'; wanted letters"),
        ({"parameters": {"recipe": "a:b"}}, "curate needs out too"),
        ({"parameters": CURATE | {"outt": "x"}}, "no parameter 'outt'; it has: recipe, out, "),
        ({"parameters": CURATE | {"workers": "many"}}, "curate: .*workers"),
    ],
)
def test_wrong_schedules_are_refused_before_a_server_is_asked(module, changes, words):
    arguments = {"flow": "curate", "cron": "0 3 * * *", "parameters": CURATE} | changes
    with pytest.raises(ValueError, match=words):
        module.schedule(**arguments)


def test_parameters_are_read_by_the_types_of_the_flow(module):
    texts = ["recipe=a:b", "out=2026", "sources=x", "sources=y=z", "workers=2", "verify=true"]
    assert module.read_parameters("curate", texts) == {
        "recipe": "a:b",
        "out": "2026",
        "sources": ["x", "y=z"],
        "workers": 2,
        "verify": True,
    }
    assert module.read_parameters("curate", ['sources=["x"]']) == {"sources": ["x"]}
    where = 'where={"kind": ["code"]}'
    assert module.read_parameters("tokenize", [where]) == {"where": {"kind": ["code"]}}
    with pytest.raises(ValueError, match="wanted NAME=VALUE"):
        module.read_parameters("curate", ["out"])
    with pytest.raises(ValueError, match="out is given twice"):
        module.read_parameters("curate", ["out=a", "out=b"])


def test_every_flow_has_a_deployment_in_prefect_yaml(module):
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    flows = [entry["entrypoint"].rpartition(".")[2] for entry in deployments]
    assert sorted(flows) == sorted(module.flows())


@given(st.text(alphabet="{}sched:%Y/ ", max_size=20))
def test_only_whole_marks_are_filled_in(text):
    if "{scheduled" not in text:
        assert fill(text, MOMENT) == text
    assert fill(text + "{scheduled}", MOMENT) == fill(text, MOMENT) + "2026-11-23"


def test_dates_are_filled_in_at_any_depth():
    value = {"out": "web/{scheduled:%Y/%m}", "sources": ("a", ["s3://b/{scheduled}"]), "workers": 2}
    assert fill(value, MOMENT) == {
        "out": "web/2026/11",
        "sources": ("a", ["s3://b/2026-11-23"]),
        "workers": 2,
    }


def test_dated_stage_gets_the_time_for_which_its_run_was_planned(module, monkeypatch):
    monkeypatch.setattr("prefect.runtime.flow_run.scheduled_start_time", MOMENT, raising=False)

    def stage(out: str, workers: int = 0) -> tuple[str, int]:
        return out, workers

    assert dated(stage)("web/{scheduled:%H%M}", workers=3) == ("web/0405", 3)


def environment(folder: Path) -> dict[str, str]:
    """A Prefect of its own: port, database and settings, as quiet and offline as ours."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
    return (
        inherited
        | prefect_settings.SETTINGS
        | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "200",
        }
    )


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str], folder: Path):
    """Runs a process with its children and ends all of them."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def python(code: str, *arguments: str, env: dict[str, str], folder: Path):
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_for(what: str, seconds: float, look, log: Path):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what} in {seconds} s; {log.read_text()[-4000:]}")


@pytest.mark.slow
def test_cron_fires_by_itself_on_a_real_server_and_curates(tmp_path):
    import httpx

    lines = [json.dumps({"text": f"the number of page {i} and that is all"}) for i in range(60)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    env = environment(tmp_path)
    prefect = [sys.executable, "-m", "prefect"]
    server_log, worker_log = tmp_path / "server.log", tmp_path / "worker.log"
    with (
        running([*prefect, "server", "start"], server_log, env, tmp_path) as server,
        httpx.Client(base_url=env["PREFECT_API_URL"], timeout=30) as api,
    ):

        def healthy() -> bool:
            assert server.poll() is None, server_log.read_text()
            try:
                return api.get("/health").is_success
            except httpx.TransportError:
                return False

        wait_for("server", 180, healthy, server_log)
        start = datetime.now(UTC)
        answer = python(
            SCHEDULE,
            "curate",
            "* * * * *",
            "each-minute",
            f"recipe={ROOT}/tests/laws/law_recipes.py:no_dedup",
            "sources=in.jsonl",
            "out=pages",
            "workers=1",
            env=env,
            folder=tmp_path,
        )
        made = answer["made"]
        assert made["deployment"] == "curate/each-minute"
        (listed,) = answer["listed"]
        assert (listed["cron"], listed["active"]) == ("* * * * *", True)
        assert listed["parameters"]["sources"] == ["in.jsonl"]
        assert made["worker"].endswith("prefect worker start --pool gristmill")
        worker_command = [*prefect, *made["worker"].split()[2:]]
        with running(worker_command, worker_log, env, tmp_path):
            deployed = subprocess.run(
                [*prefect, "--no-prompt", "deploy", "--all"],
                cwd=ROOT,
                env=env,
                capture_output=True,
                text=True,
            )
            assert deployed.returncode == 0, deployed.stdout + deployed.stderr
            query = {"deployments": {"name": {"any_": ["each-minute"]}}, "sort": "START_TIME_ASC"}

            def fired() -> list[dict]:
                runs = api.post("/flow_runs/filter", json=query).raise_for_status().json()
                failed = [run for run in runs if run["state_type"] in ("FAILED", "CRASHED")]
                assert not failed, (failed, worker_log.read_text()[-4000:])
                return [run for run in runs if run["state_type"] == "COMPLETED"]

            run = wait_for("run", 240, fired, worker_log)[0]
            removed, left = python(UNSCHEDULE, "curate/each-minute", env=env, folder=tmp_path)
        names = [d["name"] for d in api.post("/deployments/filter", json={}).json()]
    due = datetime.fromisoformat(run["expected_start_time"].replace("Z", "+00:00"))
    assert run["auto_scheduled"]
    assert (due.second, due.microsecond) == (0, 0)
    assert start < due <= start + timedelta(minutes=4)
    manifest = json.loads((tmp_path / "pages" / "manifest.json").read_text())
    assert manifest["kept"] == 60
    assert removed == {"deployment": "curate/each-minute", "removed": True}
    assert left == []
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert names == ["by-hand"] * len(deployments)
