"""Break a cache, and verify it."""

import dataclasses
from pathlib import Path

from pipelines import verify
from pipelines.verify import Report
from tests.conftest import CNN, VIT
from unic_cache.cache import open_cache
from unic_cache.config import VerifyConfig
from unic_cache.store.commit import CommitRecord

VIEW = "unic-32-0-000"
VIT_FOLDER, CNN_FOLDER = (name.replace(":", ".") for name in (VIT, CNN))


def check(folder: Path, **changes) -> Report:
    return verify.run(VerifyConfig(str(folder), **{"threads": 1, "device": "cpu", **changes}))


def flip(path: Path, place: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= mask
    path.write_bytes(bytes(data))


def record_of(folder: Path, teacher: str, shard: int) -> CommitRecord:
    cache = open_cache(folder)
    return cache.teachers[teacher].record(cache.unit(0, shard, VIEW))


def rewrite(folder: Path, teacher: str, shard: int, **changes) -> None:
    """Replace a record by another one with a valid checksum."""
    record = dataclasses.replace(record_of(folder, teacher, shard), **changes)
    (folder / record.name).write_bytes(record.to_bytes())
