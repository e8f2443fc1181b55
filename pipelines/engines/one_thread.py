"""Gives each worker one thread for products of matrices; the fork server imports this first.

Libraries read the number when they are loaded. Without it each of N workers would start as many
threads as the machine has cores, with buffers for each.
"""

import os

for _library in ("OPENBLAS", "MKL", "OMP"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
