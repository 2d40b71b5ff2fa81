"""How OpenMP's threads wait for each other, to be settled before torch is imported: OpenMP reads it once, when loaded.

Threads that spin at a barrier are quick on a machine of one's own. Beside another busy process they spin for a thread
that is not running, and training falls to a fraction; threads that sleep give way. See `benchmarks.busy`.
"""

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
DEFAULT = {"OMP_WAIT_POLICY": "PASSIVE"}  # empty leaves OpenMP as it comes


def settle_waiting() -> None:
    """Set the default, unless the user has set any of it."""
    if not any(name in os.environ for name in VARIABLES):
        os.environ.update(DEFAULT)
