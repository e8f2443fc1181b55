"""vLLM behind an exported checkpoint: started, checked against our own model, ended with us.

Its settings avoid what was seen to kill it on a CPU: prefix caching (an index error in the Mamba
kernels), and seeds of single requests together with chunked prefill.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.progress import say
from synth.probe import TOLERANCES, check_server
from synth.served_model import PROBE, ServedModel, call, served_name
from synth.vllm_environment import TAIL_LINES, has_gpu, vllm_python

SUPERVISOR = Path(__file__).with_name("supervisor.py")
MESSAGE_INTERVAL_S = 10.0
NEEDED = ("config.json", "tokenizer.json", PROBE)


@dataclass(frozen=True)
class ServerSettings:
    """How to serve: none of it is part of what an answer is.

    Raises:
        ValueError: a setting is out of its range.
    """

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""
    max_model_len: int = 2048
    """Tokens of prompt and answer together; never more than the model's own limit."""
    dtype: str = ""
    """float32 or bfloat16; empty: float32 on a CPU, the folder's own on a GPU."""
    cache_gib: int = 1
    """For keys and values; on a GPU vLLM takes what is free."""
    start_timeout_s: float = 900.0
    environment: Path | None = None
    """Folder of vLLM's environment, made if need be; None for the one in the user's cache."""
    python: Path | None = None
    """Of an environment with vLLM that somebody else has made."""
    log: Path | None = None
    """What vLLM prints; None for a temporary file."""

    def __post_init__(self) -> None:
        if self.dtype not in ("", *TOLERANCES):
            raise ValueError(
                f"ServerSettings: dtype is {self.dtype!r}; wanted one of: {', '.join(TOLERANCES)}"
            )
        for name in ("max_model_len", "cache_gib", "start_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"ServerSettings: {name} is {getattr(self, name)}; wanted more than 0"
                )


def serve(folder: Path, settings: ServerSettings | None = None) -> None:
    """Serves a folder until it is interrupted.

    Raises:
        ValueError: the folder is no export of ours.
        RuntimeError: the server died or does not compute what the model computes.
    """
    with serving(folder, settings) as server:
        say(f"serve: {server.name}")
        say(f"serve: listening on {server.url}/v1; interrupt to stop")
        while True:
            server.check()
            time.sleep(0.2)


@dataclass(frozen=True)
class RunningServer(ServedModel):
    """A server that we started."""

    process: subprocess.Popen[bytes]
    """The supervisor."""
    log: Path

    def check(self) -> None:
        """Raises RuntimeError, with the end of the log, if the server has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(
                f"serve: vLLM ended by itself:\n{_tail(self.log)}\n"
                f"Run the same command again to go on."
            )


@contextmanager
def serving(folder: Path, settings: ServerSettings | None = None) -> Iterator[RunningServer]:
    """Starts a server, checks it against the folder's probe.json, and ends it with the block.

    It also ends if this process is killed.

    Raises:
        ValueError: the folder is no export of ours, or has layers that vLLM cannot run here.
        RuntimeError: the server died, was not ready in time, or does not compute what the model
            computes; the last lines of its log are in the text.
    """
    settings = settings or ServerSettings()
    dtype, longest = _check_folder(folder, settings)
    python = settings.python or vllm_python(settings.environment)
    name = served_name(folder)
    port = settings.port or _free_port(settings.host)
    log = settings.log or Path(tempfile.mkstemp(prefix="gristmill-vllm-", suffix=".log")[1])
    address = ["--host", settings.host, "--port", str(port)]
    command = [str(python), *_arguments(folder, name, dtype, longest), *address]
    url = f"http://{settings.host}:{port}"
    say(f"serve: starting vLLM on {url} (about a minute); its log is {log}")
    with _supervised(command, log, settings) as process:
        server = RunningServer(url, name, process, log)
        _wait(server, settings.start_timeout_s)
        agreement = check_server(server, folder, dtype)
        say(
            f"serve: agrees with our model on {agreement.tokens} tokens, log-probabilities within "
            f"{agreement.largest_difference:.1e}"
        )
        yield server


def _check_folder(folder: Path, settings: ServerSettings) -> tuple[str, int]:
    """Returns the dtype to serve in and the longest context."""
    for name in NEEDED:
        if not (folder / name).is_file():
            raise ValueError(
                f"serve: {folder} has no {name}; wanted the folder that `gristmill export` wrote"
            )
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if not has_gpu() and "E" in config.get("hybrid_override_pattern", ""):
        raise ValueError(
            f"serve: {folder} has mixture-of-experts layers, which vLLM runs on GPUs only"
        )
    own = config.get("torch_dtype", "float32") if has_gpu() else "float32"
    longest = min(settings.max_model_len, config["max_position_embeddings"])
    return settings.dtype or own, longest


def _arguments(folder: Path, name: str, dtype: str, longest: int) -> list[str]:
    # the `vllm` command does not start in the CPU build: its metadata has another name
    arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder.resolve())]
    arguments += ["--served-model-name", name, "--dtype", dtype]
    arguments += ["--max-model-len", str(longest), "--no-enable-prefix-caching"]
    if not has_gpu():
        arguments += ["--enforce-eager", "--no-enable-chunked-prefill"]
        arguments += ["--max-num-batched-tokens", str(max(4096, longest))]
    return arguments


def _environment(settings: ServerSettings) -> dict[str, str]:
    ours = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    own = {name: value for name, value in os.environ.items() if name not in ours}
    return own | {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cache_gib),
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # the engine dies where flashinfer is absent
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return listener.getsockname()[1]


@contextmanager
def _supervised(
    command: list[str], log: Path, settings: ServerSettings
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command under the supervisor; the end of the block ends all its processes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        reading, writing = os.pipe()
        with os.fdopen(reading), log.open("wb") as output:
            stack.callback(os.close, writing)
            process = subprocess.Popen(
                [sys.executable, "-I", str(SUPERVISOR), str(reading), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(settings),
                pass_fds=(reading,),
                start_new_session=True,  # an interrupt of the terminal is for us alone
            )
        try:
            yield process
        finally:
            stack.close()  # the end of the pipe
            process.wait()


def _wait(server: RunningServer, timeout_s: float) -> None:
    start = last = time.monotonic()
    while True:
        if server.process.poll() is not None:
            raise RuntimeError(f"serve: vLLM died while it started:\n{_tail(server.log)}")
        with suppress(OSError, RuntimeError):  # not listening yet, or not ready
            call(server.url, "/health")
            break
        now = time.monotonic()
        if now - start > timeout_s:
            raise RuntimeError(
                f"serve: vLLM was not ready after {timeout_s:.0f} s:\n{_tail(server.log)}"
            )
        if now - last >= MESSAGE_INTERVAL_S:
            last = now
            say(f"serve: waiting for vLLM, {now - start:.0f} s")
        time.sleep(0.2)
    say(f"serve: ready after {time.monotonic() - start:.0f} s")


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    return "\n".join([*lines[-TAIL_LINES:], f"The whole log is {log}."])
