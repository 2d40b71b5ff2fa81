"""What makes thousands of crashes cheap."""

from functools import cache as memoize

import numpy as np
import pytest

from unic_cache.store import writer


@pytest.fixture
def quick_zarr(monkeypatch):
    """Zarr encodes and decodes a unit's array once in the test; after that its answer is remembered."""
    encode, decode = writer.encode_objects, writer.decode_objects

    @memoize
    def encoded(member, unit, array, data):
        rows = np.frombuffer(data, array.dtype).reshape(unit.rows, *array.row)
        return encode(member, unit, array, rows)

    @memoize
    def decoded(member, unit, array, objects):
        return decode(member, unit, array, dict(objects))

    members = {}

    def one(member):
        return members.setdefault((member.folder, member.arrays), member)

    monkeypatch.setattr(writer, "encode_objects", lambda m, u, a, rows: dict(encoded(one(m), u, a, rows.tobytes())))
    monkeypatch.setattr(
        writer, "decode_objects", lambda m, u, a, found: decoded(one(m), u, a, frozenset(found.items()))
    )
