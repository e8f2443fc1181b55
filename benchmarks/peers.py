"""The peers of the training benchmark: which versions, and how they get into a folder.

    python -m benchmarks.peers FOLDER

The folder is put on sys.path by the rows that need it, so nothing is installed into an environment.
Python files alone stay there: neither mamba-ssm's Triton kernels nor torchao's float8 layers need a
compiled part.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

PINS = {"torchao": "0.18.0", "mamba-ssm": "2.3.2.post1", "einops": "0.8.2"}
"""What is tried; transformers is the environment's own."""


def install(folder: Path) -> None:
    """Installs the peers into a folder, from the registry that pip is configured for.

    Raises:
        CalledProcessError: pip failed; what it said is above.
    """
    given = [f"{name}=={version}" for name, version in PINS.items()]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # no build isolation: mamba-ssm's set-up asks the torch that is here
    command += ["--no-deps", "--no-build-isolation", "--no-compile", "--target", str(folder)]
    settings = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}
    subprocess.run([*command, *given], check=True, env={**os.environ, **settings})
    shutil.rmtree(folder / "test", ignore_errors=True)  # torchao's, but named as Python's own
    for compiled in folder.glob("torchao/*.so"):
        compiled.unlink()


def open_folder(folder: Path | None, name: str) -> None:
    """Makes a peer importable.

    Raises:
        ValueError: it is neither in the folder nor in the environment.
    """
    if folder is not None and str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
    if name not in sys.modules and find_spec(name) is None:
        raise ValueError(
            f"peers: {name} is not in {folder}. Fill the folder where there is a network: "
            "python -m benchmarks.peers FOLDER"
        )


def open_mamba_ssm(folder: Path | None) -> None:
    """Makes mamba_ssm's Triton kernels importable without what its `__init__` imports.

    That is a compiled extension and transformers' models, neither of which the kernels need.
    """
    open_folder(folder, "mamba_ssm")
    spec = find_spec("mamba_ssm")
    assert spec is not None
    package = ModuleType("mamba_ssm")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["mamba_ssm"] = package


if __name__ == "__main__":
    install(Path(sys.argv[1]))
