"""Schedules: deployments of our flows with a cron, on the Prefect server of PREFECT_API_URL.

A deployment belongs to a work pool of type process; a worker (`prefect worker start`) asks the
pool for runs that are due and runs each in a process of its own. Against `flow.serve` this keeps
schedules when the process that made them ends, and several workers can share them. Runs import our
installed package and work in the folder of the schedule, so relative paths mean what they meant
there. Two runs of one schedule never overlap: the later one waits.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows import prefect_settings

prefect_settings.apply()

from httpx import HTTPError  # noqa: E402
from prefect import Flow  # noqa: E402 - Prefect reads its settings when it is imported
from prefect.client.orchestration import SyncPrefectClient, get_client  # noqa: E402
from prefect.client.schemas.actions import (  # noqa: E402
    DeploymentScheduleCreate,
    WorkPoolCreate,
)
from prefect.client.schemas.schedules import CronSchedule  # noqa: E402
from prefect.exceptions import ObjectNotFound, ParameterBindError, ParameterTypeError  # noqa: E402
from prefect.settings import get_current_settings  # noqa: E402
from prefect.utilities.callables import parameter_schema  # noqa: E402
from prefect.workers.process import ProcessWorker  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from pipelines.progress import say  # noqa: E402

POOL = "gristmill"
TAG = "gristmill"
NAME = "scheduled"
PAGE = 200


def schedule(
    flow: str,
    cron: str,
    parameters: Mapping[str, Any],
    *,
    name: str = NAME,
    timezone: str = "UTC",
    pool: str = POOL,
    folder: str | Path = ".",
) -> dict[str, Any]:
    """Makes a schedule, or changes the one of this name, and says how to start a worker.

    Args:
        flow: one of our flows, for example curate.
        cron: minute, hour, day, month and weekday, for example "0 3 * * *".
        parameters: of every run, by name; `{scheduled}` in a text is the date of the run.
        name: the deployment is called flow/name.
        timezone: in which the cron is meant, for example Europe/Zurich.
        pool: the work pool, of type process; it is made if it does not exist.
        folder: in which the runs work, on the machine of the worker.

    Returns:
        deployment, cron, timezone, parameters, pool, folder, api and worker (the command).

    Raises:
        ValueError: the cron, the flow, a parameter or the pool is wrong, or there is no server.
        RuntimeError: the server refuses.
    """
    chosen = find_flow(flow)
    when = _cron(cron, timezone)
    _check_name(name)
    check_parameters(chosen, parameters)
    place = str(Path(folder).resolve())
    step = {"prefect.deployments.steps.set_working_directory": {"directory": place}}
    with _server() as client:
        _make_pool(client, pool)
        client.create_deployment(
            flow_id=client.create_flow_from_name(chosen.name),
            name=name,
            version=version("gristmill"),
            schedules=[DeploymentScheduleCreate(schedule=when, active=True)],
            concurrency_limit=1,
            parameters=dict(parameters),
            description=chosen.description,
            work_pool_name=pool,
            tags=[TAG],
            entrypoint=f"flows.orchestrate.{flow}",
            pull_steps=[step],
            parameter_openapi_schema=parameter_schema(chosen).model_dump(exclude_unset=True),
            enforce_parameter_schema=True,
        )
        api = str(client.api_url).rstrip("/")
    worker = f"PREFECT_API_URL={api} prefect worker start --pool {pool}"
    say(f"schedule: {flow}/{name} runs at {cron} ({timezone}) as long as a worker does: {worker}")
    return {
        "deployment": f"{flow}/{name}",
        "cron": cron,
        "timezone": timezone,
        "parameters": dict(parameters),
        "pool": pool,
        "folder": place,
        "api": api,
        "worker": worker,
    }


def schedules() -> list[dict[str, Any]]:
    """Returns the schedules on the server: what `schedule` returned, and when each runs next.

    Raises:
        ValueError: there is no server.
    """
    with _server() as client:
        found = []
        while page := client.read_deployments(limit=PAGE, offset=len(found)):
            found += page
        rows = []
        for deployment in found:
            if TAG not in deployment.tags:
                continue
            flow = client.read_flow(deployment.flow_id)
            runs = client.get_scheduled_flow_runs_for_deployments([deployment.id])
            due = [run.expected_start_time for run in runs if run.expected_start_time]
            for entry in deployment.schedules:
                row = {"deployment": f"{flow.name}/{deployment.name}"}
                if isinstance(entry.schedule, CronSchedule):
                    row |= {"cron": entry.schedule.cron, "timezone": entry.schedule.timezone}
                row |= {"active": entry.active and not deployment.paused}
                row |= {"parameters": deployment.parameters, "pool": deployment.work_pool_name}
                rows.append(row | {"next": min(due).isoformat() if due else ""})
        return sorted(rows, key=lambda row: row["deployment"])


def unschedule(deployment: str) -> dict[str, Any]:
    """Removes a schedule, flow/name, and its runs that have not begun.

    Raises:
        ValueError: there is no such schedule, or no server.
    """
    with _server() as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except (ObjectNotFound, ValueError) as error:
            raise ValueError(
                f"schedule: the server has no deployment {deployment!r}; wanted flow/name as "
                f"`gristmill schedule --list` shows them"
            ) from error
        client.delete_deployment(found.id)
    return {"deployment": deployment, "removed": True}


def flows() -> dict[str, Flow[..., Any]]:
    """Returns our flows by name."""
    from flows import orchestrate

    return {name: value for name, value in vars(orchestrate).items() if isinstance(value, Flow)}


def find_flow(name: str) -> Flow[..., Any]:
    """Returns a flow by its name, or raises ValueError with the names of all."""
    known = flows()
    if name not in known:
        raise ValueError(f"schedule: there is no flow {name!r}; flows: {', '.join(sorted(known))}")
    return known[name]


def read_parameters(flow: str, texts: Sequence[str]) -> dict[str, Any]:
    """Reads `name=value` texts as the parameters of a flow.

    A parameter that is a text takes the value as it is; others are read as JSON. One that is a list
    may be given several times.

    Raises:
        ValueError: a text has no name or no value, or a single value is given twice.
    """
    properties = parameter_schema(find_flow(flow)).model_dump()["properties"]
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, given = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--param {text!r}: wanted NAME=VALUE, for example out=web")
        kind = properties.get(name, {}).get("type")
        value = given if kind == "string" else _json(given)
        if kind == "array" and not isinstance(value, list):
            values.setdefault(name, []).append(given)
        elif name in values:
            raise ValueError(f"--param {name} is given twice; {flow} takes one value")
        else:
            values[name] = value
    return values


def check_parameters(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> None:
    """Raises ValueError if a flow cannot be called with these parameters."""
    wanted = inspect.signature(flow.fn).parameters
    required = [name for name, p in wanted.items() if p.default is inspect.Parameter.empty]
    for name in parameters:
        if name not in wanted:
            raise ValueError(
                f"schedule: {flow.name} has no parameter {name!r}; it has: {', '.join(wanted)}"
            )
    if missing := [name for name in required if name not in parameters]:
        raise ValueError(
            f"schedule: {flow.name} needs {', '.join(missing)} too. "
            f"Give each with --param NAME=VALUE."
        )
    try:
        flow.validate_parameters(dict(parameters))
    except (ParameterTypeError, ParameterBindError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"schedule: {flow.name}: {reason}") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _cron(cron: str, timezone: str) -> CronSchedule:
    try:
        if len(cron.split()) != 5:
            raise ValueError("no five fields")
        schedule = CronSchedule(cron=cron)
    except ValueError as error:
        raise ValueError(
            f"schedule: cron is {cron!r}; wanted minute, hour, day of the month, month and day of "
            f"the week, for example '0 3 * * *' (each night at three) or '*/30 * * * 1-5'"
        ) from error
    try:
        return CronSchedule(cron=schedule.cron, timezone=timezone)
    except ValidationError as error:
        raise ValueError(
            f"schedule: timezone is {timezone!r}; wanted an IANA name, for example Europe/Zurich"
        ) from error


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"schedule: name is {name!r}; wanted letters, digits, '.', '_' and '-', for example "
            f"nightly-web"
        )


def _make_pool(client: SyncPrefectClient, pool: str) -> None:
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=pool, type=ProcessWorker.type, base_job_template=template)
        )
        return
    if found.type != ProcessWorker.type:
        raise ValueError(
            f"schedule: work pool {pool!r} is of type {found.type}; wanted {ProcessWorker.type}. "
            f"Give another name with --pool."
        )


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    """Yields a client of the server; ValueError if none is set, RuntimeError if none answers."""
    url = get_current_settings().api.url
    start = "Start one with `prefect server start` and set PREFECT_API_URL to the address it shows"
    if not url:
        raise ValueError(f"schedule: no Prefect server is set. {start}.")
    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():
            raise RuntimeError(f"schedule: no Prefect server answers at {url} ({error}). {start}.")
        try:
            yield client
        except HTTPError as error:
            raise RuntimeError(f"schedule: the Prefect server at {url} says: {error}") from error
