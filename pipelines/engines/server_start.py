"""What the fork server does first of all; nobody else imports this, see `fork_server`.

Each worker gets one thread for products of matrices: libraries read the number when they load.
Without it each of N workers would start as many threads as the machine has cores, with buffers for
each. Ctrl-C, which reaches all processes of a command, is left to the one that says something. When
the command has ended, what was loaded is not taken apart: that took 0.2 s.
"""

import atexit
import multiprocessing.forkserver
import os
import signal

import __main__

for _library in ("OPENBLAS", "MKL", "OMP"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
if getattr(__main__, "main", None) is multiprocessing.forkserver.main:
    # in a process that has more to do, the last line would hide its exit code
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    atexit.register(os._exit, 0)
