"""Settings for all tests."""

import os

from hypothesis import settings

# Set before anything imports matplotlib: a test machine has no screen.
os.environ.setdefault("MPLBACKEND", "agg")
# Set before anything imports torch: tests run side by side, one a core, and threads of their own would collide.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and no limit on their time: the first one pays for torch's start.
settings.register_profile("book", deadline=None, derandomize=True, database=None)
settings.load_profile("book")
