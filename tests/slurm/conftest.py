"""One SLURM cluster for all tests of this folder. They run by `pytest -m slurm tests/slurm` only."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    with cluster() as found:
        yield found
