"""Parameters of a scheduled run that name its date: `web/{scheduled}` is `web/2026-11-23`.

A schedule has the same parameters each time, but a run needs a folder of its own. The date is that
for which the run was planned (UTC), not that of its start, so a run that is started again writes
to the same folder and goes on there.
"""

import functools
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

R = TypeVar("R")

SCHEDULED = re.compile(r"\{scheduled(?::([^{}]+))?\}")
FORMAT = "%Y-%m-%d"


def fill(value: Any, moment: datetime) -> Any:
    """Returns a value with `{scheduled}` and `{scheduled:FORMAT}` (strftime) filled in."""
    if isinstance(value, str):
        return SCHEDULED.sub(lambda match: moment.strftime(match[1] or FORMAT), value)
    if isinstance(value, dict):
        return {name: fill(item, moment) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(fill(item, moment) for item in value)
    return value


def dated(function: Callable[..., R]) -> Callable[..., R]:
    """Returns a stage that fills in the time for which its flow run was planned."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> R:
        from prefect.runtime import flow_run

        moment = flow_run.scheduled_start_time
        return function(*fill(args, moment), **fill(kwargs, moment))

    return run
