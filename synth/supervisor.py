"""Runs a command in a process group that cannot outlive whoever started it.

vLLM is three processes, and a parent that is killed with SIGKILL cannot end them. So this program
stands between: it reads a pipe that the parent never writes to, and the pipe's end, however the
parent dies, ends the group. It is run as a file by its own interpreter and imports nothing else.

    python supervisor.py PIPE COMMAND...
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 10.0
"""From SIGTERM to SIGKILL."""
POLL_S = 0.2
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36


def supervise(pipe: int, command: list[str]) -> int:
    """Runs the command until it ends, the other end of the pipe is closed, or SIGTERM comes.

    Returns:
        The command's exit code (negative: the signal), or 0 where it was ended.
    """
    asked: list[int] = []  # raising from the handler could leave a child that has just started
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when it is over
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # grandchildren whose parent died are ours to wait for
    supervisor = os.getpid()

    def die_with_supervisor() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an ignored signal stays so in children
        if os.getppid() != supervisor:  # it died before the lines above
            os._exit(1)

    child = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_supervisor)
    try:
        while child.poll() is None:
            if asked or select.select([pipe], [], [], POLL_S)[0]:
                return 0
        return child.returncode
    finally:
        end_group(child)  # a command that ended by itself may have left processes behind


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Ends all processes of the child's group: politely, then not."""
    deadline = time.monotonic() + GRACE_S
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _signal(child.pid, number):
            return
        while time.monotonic() < deadline or number == signal.SIGKILL:
            child.poll()
            _reap()
            if not _signal(child.pid, 0):
                return
            time.sleep(POLL_S / 4)


def _signal(group: int, number: int) -> bool:
    """Signals a group; False if it has no process left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _reap() -> None:
    """Waits for ended grandchildren, which as zombies would still count as the group."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    code = supervise(int(sys.argv[1]), sys.argv[2:])
    sys.exit(code if code >= 0 else 128 - code)
