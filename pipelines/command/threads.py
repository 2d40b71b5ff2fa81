"""How OpenMP's threads wait for each other, set before torch is imported, as OpenMP reads it once.

Spinning at a barrier is fast on an idle machine. Beside another busy process, threads spin for one that is not running,
and training slows to a fraction; sleeping threads yield. See `benchmarks.busy`.
"""

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
DEFAULT = {"OMP_WAIT_POLICY": "PASSIVE"}  # empty leaves OpenMP's own default


def settle_waiting() -> None:
    """Set the default, unless the user has set any of the variables."""
    if not any(name in os.environ for name in VARIABLES):
        os.environ.update(DEFAULT)
