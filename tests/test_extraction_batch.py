"""One batch of extraction on a fake GPU: the host never waits, and only codes and flags come back to it."""

import types

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from pipelines.extracting.recorder import recorder
from pipelines.extracting.specs import pixel_spec
from pipelines.extracting.unit_rows import UnitRows
from tests.conftest import VIT
from tests.fake_device import FakeDevice, named
from unic_cache.config import CODECS, PIXEL_CODECS, Views
from unic_cache.errors import TeacherError
from unic_cache.files.local import LocalFolder
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.commit import Unit
from unic_cache.store.layout import FORMAT, VIEWS_MEMBER, Extent
from unic_cache.store.member import Member
from unic_cache.stream.pixels import ViewBatch
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import Teacher
from unic_cache.token_kinds import kinds_to_json

BATCH, SIZE = 4, 32
UNIT = Unit(0, Extent(1, 2 * BATCH), 0, "tar0", 2 * BATCH, Views("unic", SIZE, 0), 0)
VIEWS = ViewBatch(np.zeros((BATCH, SIZE, SIZE, 3), np.uint8), np.ones(BATCH, np.uint32), {})


def teacher_on(device):
    spec = resolve(VIT)
    return Teacher(spec, timm.create_model(spec.arch, num_classes=0, **dict(spec.arch_options)), device, torch.float32)


@pytest.fixture(scope="module")
def kinds():
    return teacher_on(torch.device("cpu")).spec.kinds


def member(folder, name, kinds, codec, tokens):
    """A teacher's folder with a calibration of random tokens."""
    kept = {"codec": codec, "tokens": tokens, "quality": 0.99 if codec == "klt" else None}
    spec = {"format": FORMAT, "teacher": {"name": name}, "dtype": "float32", "features": kinds_to_json(kinds), **kept}
    made = Member.ensure(LocalFolder(folder), name, spec)
    calibrator, generator = Calibrator(made.features), torch.Generator().manual_seed(0)
    shapes = {kind: (40, *((4,) if one.grid else ()), one.channels) for kind, one in kinds.items()}
    kept_BN = None if tokens is None else torch.arange(tokens).expand(40, -1)
    calibrator.update({kind: torch.randn(shape, generator=generator) for kind, shape in shapes.items()}, kept_BN)
    made.location.create(made.calibration_name, calibrator.calibration().to_bytes())
    return made


@pytest.fixture
def no_cuda_needed(monkeypatch):
    """Page-locked memory and events need CUDA's runtime."""
    empty, event = torch.empty, types.SimpleNamespace(synchronize=lambda: None)

    def pageable(*arguments, pin_memory=False, **options):
        return empty(*arguments, **options)

    monkeypatch.setattr(torch, "empty", pageable)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    stream = types.SimpleNamespace(record_event=lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)


@pytest.mark.usefixtures("no_cuda_needed")
@pytest.mark.parametrize("tokens", [None, 2])
@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_never_waits_and_brings_back_codes_and_flags_only(tmp_path, kinds, codec, tokens):
    members = [member(tmp_path, name, kinds, codec, tokens) for name in ("one", "other")]
    pixels = [
        Member.ensure(LocalFolder(tmp_path / name), VIEWS_MEMBER, pixel_spec(SIZE, name)) for name in PIXEL_CODECS
    ]
    with FakeDevice() as fake:
        recorders = [recorder(one, teacher_on(fake.device)) for one in members] + [
            recorder(one, None) for one in pixels
        ]
        rows = UnitRows(UNIT, recorders, {})
        for _ in range(2):
            fake.to_host.clear()
            fake.to_device.clear()
            rows.add(VIEWS, [(key, 0) for key in range(BATCH)], fake.device)
    arrays = [array for one in [*members, *pixels] for array in one.arrays]
    codes = [named(torch.empty((BATCH, *array.row), dtype=getattr(torch, array.dtype))) for array in arrays]
    flags = ["bool (4,)"] * len(kinds) + ["int32 (4,)"] * (codec == "klt")
    assert sorted(fake.to_host) == sorted(codes + 2 * flags)
    assert fake.to_device == ["uint8 (4, 32, 32, 3)", *(["int64 (4, 2)"] if tokens else [])]  # positions once for both


def test_nan_is_told_when_the_codes_have_landed_and_nothing_is_committed(tmp_path, kinds):
    one, teacher = member(tmp_path, "one", kinds, "f16", None), teacher_on(torch.device("cpu"))
    rows = UnitRows(UNIT, [recorder(one, teacher)], {})
    with torch.no_grad():
        next(teacher.model.parameters()).fill_(float("nan"))
    rows.add(VIEWS, [(0, 0)] * BATCH, teacher.device)
    with pytest.raises(TeacherError, match=r"view unic-32-0-000 of shard tar0: teacher .*: NaN or infinite cls"):
        rows.add(VIEWS, [(0, 0)] * BATCH, teacher.device)
    assert not one.committed(0, UNIT.view, np.array([UNIT.rows]))
