"""The process that workers of the local engine are forked from, and when it is started.

It loads what workers need, once: they share its pages and inherit no threads. That takes a second,
as long as the command needs to load a recipe and list its sources, so the command line starts it
first of all. By then nothing is known of the recipe but its file; if that imports modules of
gristmill alone, they are all that its steps can need. Where it imports others, the engine starts
the process when it has the steps, for only then is it known which modules are theirs.
"""

import ast
import importlib.util
import multiprocessing.forkserver
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

FIRST = tuple(f"pipelines.engines.{name}" for name in ("server_start", "preload", "stages"))
OURS = ("filters", "flows", "mixtures", "pipelines", "synth")
LOADED = ("numpy", "pyarrow")
"""Libraries that `stages` loads."""


def start(modules: Iterable[str]) -> None:
    """Starts the fork server, which loads modules of steps and readers; a running one stays."""
    multiprocessing.forkserver.set_forkserver_preload([*FIRST, *sorted(modules)])
    resource_tracker.ensure_running()  # which would let signals through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()  # deaf to Ctrl-C until `server_start`
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Lets Ctrl-C wait until a worker has been started: a half started one would be left alone."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield  # here it interrupts nothing, or it is not Python that handles it
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def start_for(recipe: str) -> bool:
    """Starts the fork server for `module:function` or `file.py:function`, which is not loaded here.

    Returns:
        Whether it was; if not, what the recipe imports is not known or is not ours alone.
    """
    path = _file_of(recipe.partition(":")[0])
    modules = _imports_of(path) if path is not None and path.is_file() else None
    if modules is None:
        return False
    start(modules)
    return True


def _file_of(module: str) -> Path | None:
    if module.endswith(".py"):
        return Path(module)
    if "." in module and module.partition(".")[0] not in OURS:
        return None  # to find it, Python would load the packages around it
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None  # there is none, as is said when the recipe is loaded
    return Path(spec.origin) if spec is not None and spec.origin else None


def _imports_of(path: Path) -> set[str] | None:
    """Returns the modules of ours that a file imports; None if it imports anything else."""
    try:
        names = set(_imported(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError):
        return None  # as is said when the recipe is loaded
    others = {name.partition(".")[0] for name in names}
    if others - {*OURS, *LOADED, *sys.stdlib_module_names}:
        return None
    return {name for name in names if name.partition(".")[0] in OURS}


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
