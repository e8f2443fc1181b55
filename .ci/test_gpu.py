"""Runs each file of GPU tests in a process of its own, four at a time; prints them in order.

    python .ci/test_gpu.py [PYTEST_OPTION ...]

Most of their time goes to compilers on the CPU: side by side they took 142 s on an H200. The exit
code is 1 if a file fails.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
AT_ONCE = 4


def run_file(path: Path) -> tuple[int, str]:
    """Runs one file's GPU tests; returns the exit code and what was printed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *sys.argv[1:], str(path)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def main() -> int:
    """Runs all files and returns the exit code."""
    files = [
        path
        for path in sorted((ROOT / "tests").glob("**/test_*.py"))
        if "pytest.mark.gpu" in path.read_text("utf-8")
    ]
    failed = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for path, (code, said) in zip(files, pool.map(run_file, files), strict=True):
            sys.stdout.write(f"{path.relative_to(ROOT)}\n{said}\n")
            sys.stdout.flush()
            if code:
                failed.append(str(path.relative_to(ROOT)))
    sys.stdout.write(f"{len(files)} files, failed: {', '.join(failed) or 'none'}\n")
    return int(bool(failed) or not files)


if __name__ == "__main__":
    sys.exit(main())
