"""Keeps pyarrow from importing pandas, which takes 0.4 s of every process.

Given a list, pyarrow tries once to import pandas and does without where that fails. Imported for
that effect; what needs pandas itself still gets it.
"""

import sys

import pyarrow as pa

from pipelines.absent import absent

if "pandas" not in sys.modules:
    with absent("pandas"):
        pa.array([0])
