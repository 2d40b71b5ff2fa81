"""One Ray session of two cores for all tests of this folder. They run by `pytest -m ray tests/ray` only."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, and leave it out of a run that does not ask for it by its mark."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker("ray")
    if "ray" not in config.getoption("-m"):
        items[:] = [item for item in items if item not in here]
        config.hook.pytest_deselected(items=here)


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
