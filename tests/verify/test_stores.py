"""`verify` and `repair` on an object store, and on a disk with bad sectors."""

import errno
import os

import pytest

from pipelines import repair
from tests.conftest import tree
from tests.object_server import ObjectServer
from tests.verify.damage import VIEW, VIT_FOLDER, check
from unic_cache.config import RepairConfig
from unic_cache.files.local import LocalFolder

PATCH = f"{VIT_FOLDER}/features.zarr/000000/{VIEW}/patch/c.0.0.0.0"


def test_a_cache_on_an_object_store(whole, monkeypatch):
    with ObjectServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        server.objects.update({f"cache/{name}": data for name, data in tree(whole).items()})
        assert check("s3://bucket/cache", threads=4).exit_code == 0
        data = server.objects[f"cache/{PATCH}"]
        server.objects[f"cache/{PATCH}"] = data[:700] + bytes([data[700] ^ 1]) + data[701:]
        (finding,) = check("s3://bucket/cache").broken
        assert (finding.file, finding.rows) == (PATCH, (700 // 256,))
        assert repair.run(RepairConfig("s3://bucket/cache")).to_extract
        assert f"cache/{PATCH}" not in server.objects
        assert check("s3://bucket/cache").exit_code == 3


@pytest.mark.parametrize(("number", "told"), [(errno.EIO, True), (errno.EACCES, False)])
def test_bad_sectors_are_broken_rows_and_a_closed_door_is_an_error(whole, monkeypatch, number, told):
    honest = LocalFolder.read_range

    def failing(location, name, offset, size):
        if name == PATCH:
            raise OSError(number, os.strerror(number), name)
        return honest(location, name, offset, size)

    monkeypatch.setattr(LocalFolder, "read_range", failing)
    if told:
        (finding,) = check(whole).broken
        assert (finding.why, len(finding.rows)) == ("cannot be read (Input/output error)", 35)
    else:
        with pytest.raises(OSError, match="Permission denied"):
            check(whole)


def test_what_could_not_be_read_but_once_is_not_removed(broken, monkeypatch):
    """A brief failure of a disk or connection has damaged nothing."""
    honest, calls, before = LocalFolder.read_range, [], tree(broken)

    def failing(location, name, offset, size):
        if name == PATCH and not calls:
            calls.append(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        return honest(location, name, offset, size)

    monkeypatch.setattr(LocalFolder, "read_range", failing)
    assert repair.run(RepairConfig(str(broken))).done == []
    assert calls == [PATCH]
    assert tree(broken) == before
