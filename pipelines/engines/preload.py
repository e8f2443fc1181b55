"""Imported once by the fork server, before it forks workers.

Numba spends over a second on its first compiled call; made here, that second is spent once, and all
workers share its memory. What is imported is never garbage, so the collector rests meanwhile, and
workers leave it out, or they would copy its pages.
"""

import gc

import pyarrow as pa

import pipelines.without_pandas  # noqa: F401
from pipelines.hashing import hash128

gc.disable()
READY = len(hash128(pa.array(["ready"])))
