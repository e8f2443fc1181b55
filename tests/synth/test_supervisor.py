import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from synth import supervisor

# a command with a child of its own; both say their process ids
FAMILY = ["sh", "-c", "sleep 1000 & echo $$ $!; wait"]
STUBBORN = ["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.1; done"]


def start(command: list[str], *before: str) -> tuple[subprocess.Popen, int, list[int]]:
    """Returns the supervisor, our end of the pipe and the process ids that the command said."""
    reading, writing = os.pipe()
    program = before or (supervisor.__file__,)
    process = subprocess.Popen(
        [sys.executable, *program, str(reading), *command],
        stdout=subprocess.PIPE,
        pass_fds=(reading,),
        start_new_session=True,
    )
    os.close(reading)
    assert process.stdout is not None
    return process, writing, [int(number) for number in process.stdout.readline().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int]) -> None:
    for _ in range(600):
        if not any(map(is_running, pids)):
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {[pid for pid in pids if is_running(pid)]}")


def test_closed_pipe_ends_the_whole_group():
    process, writing, pids = start(FAMILY)
    with process:
        assert all(map(is_running, pids))
        os.close(writing)
        assert process.wait(30) == 0
        assert not any(map(is_running, pids))


def test_terminated_supervisor_ends_the_whole_group():
    process, writing, pids = start(FAMILY)
    with process:
        process.terminate()
        assert process.wait(30) == 0
        assert not any(map(is_running, pids))
    os.close(writing)


def test_command_that_ends_gives_its_exit_code_and_leaves_nothing():
    process, writing, pids = start(["sh", "-c", "sleep 1000 & echo $!; exit 7"])
    with process:
        assert process.wait(30) == 7
        assert not any(map(is_running, pids))
    os.close(writing)


def test_command_that_a_signal_ends_gives_what_a_shell_would():
    process, writing, pids = start(FAMILY)
    with process:
        os.kill(pids[0], signal.SIGKILL)
        assert process.wait(30) == 128 + signal.SIGKILL
        assert not any(map(is_running, pids))
    os.close(writing)


def test_command_that_ignores_sigterm_is_killed():
    short = (
        "import sys; from synth import supervisor; supervisor.GRACE_S = 0.3; "
        "sys.exit(supervisor.supervise(int(sys.argv[1]), sys.argv[2:]))"
    )
    process, writing, pids = start(STUBBORN, "-c", short)
    with process:
        os.close(writing)
        assert process.wait(30) == 0
        assert not any(map(is_running, pids))


def test_killed_parent_takes_the_group_along():
    parent = (
        "import os, subprocess, sys\n"
        "reading, writing = os.pipe()\n"
        "command = [sys.executable, sys.argv[1], str(reading), *sys.argv[2:]]\n"
        "subprocess.run(command, pass_fds=(reading,), start_new_session=True)\n"
    )
    command = [sys.executable, "-c", parent, supervisor.__file__, *FAMILY]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = [int(number) for number in process.stdout.readline().split()]
        process.kill()
        process.wait(30)
        wait_until_gone(pids)


def test_killed_supervisor_takes_the_command_along():
    process, writing, pids = start(["sleep", "1000"], "-c", SAY_CHILD)
    with process:
        process.kill()
        process.wait(30)
        wait_until_gone(pids)
    os.close(writing)


SAY_CHILD = """
import subprocess, sys
from synth import supervisor
popen = subprocess.Popen
class Saying(popen):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        print(self.pid, flush=True)
subprocess.Popen = Saying
supervisor.supervise(int(sys.argv[1]), sys.argv[2:])
"""
