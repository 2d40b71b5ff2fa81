"""One Ray session of two cores for all tests of this folder. They run by `pytest -m ray tests/ray` only."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of the session; one that this process has begun before is used."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = not ray.is_initialized()
    if own:
        ray.init("local", num_cpus=2, object_store_memory=10**8, include_dashboard=False, log_to_driver=False)
    yield "auto"
    if own:
        ray.shutdown()
