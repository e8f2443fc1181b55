"""A training run watched while it goes on: the report's page, served to this machine only.

The page asks for its data every few seconds; what it shows is made from the run's folder alone (the
append-only Parquet metrics, run.json, checkpoints), so it works for a run that another process, or
another machine with the same file system, trains, and for one that has stopped. Nothing is written.
"""

import json
import time
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from flows.charts import duration
from flows.report import render, training_report
from flows.training_report import RUN
from mixtures.artifact import is_held
from pipelines.dataset import MANIFEST
from training_hook.metrics import FOLDER

HOST = "127.0.0.1"
INTERVAL_S = 2.0
"""Between two questions of a page."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
}


class LiveReport:
    """The page of a training run's folder and its data, made again when the folder has changed.

    Raises:
        ValueError: the folder is not a training run's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._made: tuple[str, dict[str, Any], str] | None = None
        check_run(folder)

    def page(self) -> str:
        """Returns the HTML page as it is now."""
        version, page, _ = self._render()
        live = {**self._state(), "version": version, "interval_ms": int(1000 * INTERVAL_S)}
        return render("report.html.j2", page | {"live": live})

    def data(self) -> dict[str, Any]:
        """Returns state, progress and the page's contents, JSON-safe."""
        version, page, html = self._render()
        training = page["training"]
        return {
            **self._state(),
            "version": version,
            "run": training["about"]["run"]["name"],
            "progress": training["progress"],
            "held_out": training["held_out"],
            "checkpoints": training["checkpoints"],
            "html": html,
        }

    def _render(self) -> tuple[str, dict[str, Any], str]:
        with self._lock:
            version = self._version()
            if self._made is None or self._made[0] != version:
                page = training_report(self._folder)
                html = render("layout.html.j2", page | {"live": self._state()})
                self._made = version, page, html
            return self._made

    def _version(self) -> str:
        """Returns what changes whenever the page's data do: names, sizes and times of its files."""
        files = [self._folder / RUN, self._folder / MANIFEST, *self._folder.glob(f"{FOLDER}/*")]
        files += self._folder.glob(f"checkpoints/step-*/{MANIFEST}")
        found = [(path, path.stat()) for path in sorted(files) if path.exists()]
        marks = [f"{p.name} {s.st_size} {s.st_mtime_ns} {s.st_ino}" for p, s in found]
        return str(hash(tuple(marks)))

    def _state(self) -> dict[str, str]:
        if (self._folder / MANIFEST).is_file():
            return {"state": "finished", "about": ""}
        rows = [path.stat().st_mtime for path in self._folder.glob(f"{FOLDER}/steps-*.parquet")]
        age = f", last written {duration(max(0.0, time.time() - max(rows)))} ago" if rows else ""
        if is_held(self._folder):
            return {"state": "running", "about": age}
        return {
            "state": "not running",
            "about": f": no process of this machine trains it{age}; the same command goes on",
        }


def check_run(folder: Path) -> None:
    """Checks that a folder is a training run's.

    Raises:
        ValueError: it is not there, or it is something else; the message names runs below it.
    """
    if (folder / RUN).is_file():
        return
    if not folder.is_dir():
        raise ValueError(f"report --live: there is no folder {folder}; wanted that of a pretrain")
    below = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/{RUN}"))
    found = f"; there are runs below it: {', '.join(below)}" if below else ""
    raise ValueError(
        f"report --live: {folder} has no {RUN}, so it is no training run{found}. Give the --out "
        "folder of pretrain or sft, once it has begun"
    )


def open_server(folder: str | Path, port: int) -> ThreadingHTTPServer:
    """Returns a server of a run's live page, bound to 127.0.0.1; call its serve_forever.

    Args:
        folder: of a training run.
        port: to listen on; 0 takes a free one.

    Raises:
        ValueError: the folder is not a training run's, or the port is taken.
    """
    report = LiveReport(Path(folder))
    try:
        return ThreadingHTTPServer((HOST, port), partial(Handler, report))
    except OSError as error:
        raise ValueError(
            f"report --live: port {port} of {HOST} cannot be used: {error}. Choose another --port, "
            "or 0 for a free one"
        ) from error


class Handler(BaseHTTPRequestHandler):
    """Answers with the page or its data, to whoever asks for this machine by its own name."""

    def __init__(self, report: LiveReport, *arguments: Any) -> None:
        self._report = report
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answers / and /data.json."""
        # a page of elsewhere whose name was made to lead here must not read along
        name = self.headers.get("Host", "").rpartition(":")[0]
        if name not in (HOST, "localhost"):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", f"ask for {HOST}, not for {name!r}")
        elif self.path == "/":
            self._answer("text/html", self._report.page)
        elif self.path == "/data.json":
            self._answer("application/json", lambda: json.dumps(finite(self._report.data())))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "there is / and /data.json")

    def _answer(self, kind: str, make: Any) -> None:
        try:
            text = make()
        except FileNotFoundError as error:  # the run has just replaced it; the page asks again
            missing = Path(error.filename or "a file").name
            unready = f"{missing} went away while it was read"
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", unready)
            return
        except Exception as error:  # the page says it, and so does the terminal
            said = f"{type(error).__name__}: {error}"
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", said)
            raise
        self._send(HTTPStatus.OK, kind, text)

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: a page asks every two seconds."""


def finite(value: Any) -> Any:
    """Returns data in which a number that JSON has not (infinity, NaN) is None."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not (abs(value) < float("inf")) else value
