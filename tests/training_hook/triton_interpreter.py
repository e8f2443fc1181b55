import os
import subprocess
import sys
from pathlib import Path


def run_in_interpreter(function: str, module: str) -> None:
    """Runs a function of a test module with Triton's interpreter in place of a GPU.

    That is chosen when Triton is imported, so it takes a process of its own.
    """
    code = f"from {module} import {function} as run; run()"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
