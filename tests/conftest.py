"""Settings for all tests: one thread each, since they may share the machine with each other.

Property tests draw the same examples in every run, so that a red run is due to a change. New
examples are drawn by `make explore`; what it finds becomes a case of its own.
"""

import os
import signal

from hypothesis import HealthCheck, settings

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# a shell has its background commands ignore Ctrl-C, and they hand that on to what they start
signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes says more about the machine than about the code
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeat", patient, derandomize=True, database=None)
settings.register_profile("explore", patient, max_examples=1000, print_blob=True)
settings.load_profile("repeat")
