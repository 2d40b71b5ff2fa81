"""One Ceph gateway for all tests of this folder, and a bucket for each. They run by `pytest -m s3 tests/s3` only."""

import os
from collections.abc import Iterator
from itertools import count

import pytest

from tests.s3.radosgw import Gateway, radosgw

numbers = count()


@pytest.fixture(scope="session")
def running_gateway() -> Iterator[Gateway]:
    with radosgw() as gateway:
        yield gateway


@pytest.fixture
def gateway(running_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """The gateway, with the environment set so that s3:// means it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in running_gateway.environment().items():
        monkeypatch.setenv(name, value)
    return running_gateway


@pytest.fixture
def bucket(gateway: Gateway) -> str:
    """The URL of a fresh bucket."""
    name = f"bucket-{next(numbers)}"
    gateway.make_bucket(name)
    return f"s3://{name}"
