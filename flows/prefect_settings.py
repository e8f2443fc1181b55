"""Settings under which Prefect is quiet, offline and patient; imported before Prefect itself.

The ephemeral server needs 25 to 40 s to start on two busy cores and Prefect gives it 20, so flows
would die at their start. A setting that is given in the environment wins.
"""

import os

SETTINGS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # what a flow raises is printed once, by the command
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "DO_NOT_TRACK": "1",
}


def apply() -> None:
    """Sets what the environment does not."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
