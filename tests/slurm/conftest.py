"""One SLURM cluster for all tests of this folder. They run by `pytest -m slurm tests/slurm` only."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, cluster


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, and leave it out of a run that does not ask for it by its mark."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker("slurm")
    if "slurm" not in config.getoption("-m"):
        items[:] = [item for item in items if item not in here]
        config.hook.pytest_deselected(items=here)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    with cluster() as found:
        yield found
