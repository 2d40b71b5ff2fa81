"""Extraction without teachers: units of invented features, written by the real writer, read by the real reader.

Thousands of crashes of it can be tried in the time that one real extraction takes.

Letters: n rows, T patch tokens, D and Dp channels.
"""

from collections.abc import Sequence
from functools import cache as memoize

import numpy as np
import torch
from crc32c import crc32c

from unic_cache.config import Views
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.store.calibrate import Calibration
from unic_cache.store.codecs.fit import BandMoments, fit_klt
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.layout import Extent
from unic_cache.store.member import Member
from unic_cache.store.reader import RowArray, RowReader
from unic_cache.store.writer import CODES_APART, UnitWriter

FOLDER = "teacher"
SPEC = {
    "format": 1,
    "teacher": {"name": FOLDER, "weights_sha256": "0"},
    "features": {"cls_dim": 6, "grid": [2, 2], "patch_dim": 5},
    "codec": "int8",
    "dtype": "float32",
}
TILES_ALONE = {**SPEC, "codec": "klt", "features": {"cls_dim": None, "grid": [2, 2], "patch_dim": 5}}
CLS_ALONE = {**SPEC, "features": {"cls_dim": 6, "grid": None, "patch_dim": None}}


def calibration() -> Calibration:
    """One for all codecs: statistics, and what `klt` needs of tokens like those below."""
    statistics = {"cls": np.ones(6), "patch": np.ones(5)}
    tokens = torch.randn(100, 4, 5, generator=torch.Generator().manual_seed(0))
    moments = BandMoments((2, 2), 4)
    moments.update(tokens)
    klt = fit_klt(moments.axes(np.zeros(5), np.ones(5)), tokens[:50], tokens[50:], (2, 2), 0.99)
    return Calibration(statistics, statistics, {}, klt=klt.to_arrays())


CALIBRATION = calibration().to_bytes()


def units(*rows: int, views: int = 1) -> list[Unit]:
    """The units of tars with so many rows, tar by tar."""
    extent = Extent(len(rows), max(rows))
    return [
        Unit(0, extent, shard, f"tar{shard}", count, Views("unic", 32, 0), view)
        for shard, count in enumerate(rows)
        for view in range(views)
    ]


def extract(location: Location, work: Sequence[Unit], spec: dict = SPEC, machine: int = 0) -> list[CommitRecord]:
    """What `pipelines.extract.run` does to a store: spec, calibration, then each unit that has no record.

    Features of another `machine` differ in their last bits.
    """
    member = Member.ensure(location, FOLDER, spec)
    location.create(member.calibration_name, CALIBRATION)
    found = member.calibration()
    assert found is not None
    writer = UnitWriter(member, found[1])
    tars = np.zeros(work[0].extent.shards, np.int64)  # too few for seals, to which their rows would matter
    missing = [unit for unit in work if unit.shard not in member.committed(unit.segment, unit.view, tars)]
    return [writer.write(unit, parts(unit, spec["codec"], machine), pixels(unit), bad(unit)) for unit in missing]


def parts(unit: Unit, codec: str, machine: int = 0) -> dict[str, RowArray]:
    """The arrays of a unit's features as a member with all tokens keeps them; others leave some out."""
    return dict(_parts(unit, codec, machine))


@memoize
def _parts(unit: Unit, codec: str, machine: int) -> dict[str, RowArray]:
    member = Member(LocalFolder("nowhere"), FOLDER, {**SPEC, "codec": codec})
    assert member.features is not None
    generator = np.random.default_rng([unit.shard, crc32c(unit.view.encode())])
    noise = np.random.default_rng(machine)
    features = {}
    for kind, shape in {"cls": (unit.rows, 6), "patch": (unit.rows, 4, 5)}.items():
        exact = generator.standard_normal(shape)
        features[kind] = torch.from_numpy((exact * (1 + machine * 1e-3 * noise.random(shape))).astype(np.float32))
    encoded = Calibration.from_bytes(CALIBRATION, "here").codec(member.features).encode(features)
    arrays = {name: values.numpy() for name, values in encoded.arrays.items()}
    for values in arrays.values():
        values[list(bad(unit))] = 0
    return arrays


def pixels(unit: Unit) -> np.ndarray:
    """Checksums of views that nobody made."""
    return np.random.default_rng(unit.shard).integers(0, 2**32, unit.rows, dtype=np.uint32)


def bad(unit: Unit) -> dict[int, str]:
    """Every second tar begins with a bad image."""
    return {0: "not an image"} if unit.shard % 2 else {}


def check_readers(location: Location, work: Sequence[Unit]) -> int:
    """Whoever reads now finds each unit's right rows or no record; how many units there are."""
    member = Member.open(location, FOLDER)
    if member is None:
        assert not [name for name in location.names() if "/commits/" in name]
        return 0
    records = [record for unit in work if (record := member.record(unit)) is not None]
    for record in records:
        unit = record.unit
        assert record.calibration == crc32c(CALIBRATION) == crc32c(location.read(member.calibration_name))
        assert {name: location.size(name) for name in record.sizes} == record.sizes
        found = RowReader(member).read(record, range(unit.rows))
        expected = parts(unit, member.features.codec)
        theirs, ours = (
            member.codec.decode({name: torch.from_numpy(arrays[name]) for name in found})
            for arrays in (found, expected)
        )
        for kind in theirs:
            slack = 0.05 + CODES_APART * member.codec.steps[kind]
            assert torch.allclose(theirs[kind], ours[kind], rtol=0.02, atol=slack), (record.name, kind)
        assert record.pixels.tolist() == pixels(unit).tolist()
        assert dict(record.bad) == bad(unit)
    assert len(records) == len(list(location.names(f"{FOLDER}/commits")))
    return len(records)
