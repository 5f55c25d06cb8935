"""Sound to spectrograms: load, pad, transform, normalise and save, on one core or many."""

import os

# Before ray is imported, which reads them once: nothing is reported home, no worker's line is hidden as a repetition,
# and devices stay as they are.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray talks to those who have its token; otherwise it would not even look for the file in which that is kept.
os.environ.setdefault("RAY_AUTH_MODE", "token")
# Before Arrow is: its own allocator keeps for itself several times the memory that a large corpus's table takes.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

# Who started this process, noted before anything that takes seconds to import: see `pipeline.command`.
PARENT = os.getppid()
