"""Token kinds are data: a teacher with two summary tokens, or two kinds of grid tokens, from views to reader."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from crc32c import crc32c
from torch import Tensor, nn

from unic_cache.cache import open_cache
from unic_cache.errors import CacheError, TeacherError
from unic_cache.files.local import LocalFolder
from unic_cache.store.calibrate import Calibration, Calibrator
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.store.layout import FORMAT
from unic_cache.store.member import Member
from unic_cache.store.writer import UnitWriter
from unic_cache.teachers.model import Teacher, finite
from unic_cache.teachers.spec import TeacherSpec
from unic_cache.token_kinds import TokenKind, in_order, kinds_from_json, kinds_to_json
from unic_cache.views.index import ShardEntry
from unic_cache.views.segments import extend_index

ROWS = 60
KINDS = {"cls": TokenKind(8), "cls-1": TokenKind(8), "patch": TokenKind(8, (4, 4))}
SPEC = TeacherSpec(
    name="two",
    about="a network with two class tokens",
    arch="none",
    arch_options=(),
    input_size=32,
    stride=8,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    summary_rules={"cls": "norm-cls", "cls-1": "norm-cls:1"},
    grid_rules={"patch": "norm-patch"},
    key_layout="timm",
    position_rule="timm",
    source="file",
    published="nowhere",
    licence="none",
)


class TwoClassTokens(nn.Module):
    """Two class tokens and a register before 4 x 4 grid tokens."""

    num_prefix_tokens = 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.grid = nn.Conv2d(3, 8, 8, stride=8)
        self.prefix = nn.Linear(8, 3 * 8)

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        grid_BTD = self.grid(images_BCHW).flatten(2).transpose(1, 2)
        return torch.cat([self.prefix(grid_BTD.mean(dim=1)).unflatten(1, (3, 8)), grid_BTD], dim=1)


@pytest.fixture
def teacher() -> Teacher:
    return Teacher(SPEC, TwoClassTokens(), torch.device("cpu"), torch.float32)


@pytest.fixture
def views() -> Tensor:
    return torch.randint(256, (ROWS, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_teacher_gives_each_of_its_summary_tokens(teacher, views):
    assert list(teacher.spec.kinds.items()) == list(KINDS.items())
    found = teacher(views)
    with torch.inference_mode():
        every = teacher.model.forward_features((views.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    assert torch.equal(found["cls"], every[:, 0])
    assert torch.equal(found["cls-1"], every[:, 1])
    assert torch.equal(found["patch"], every[:, 3:])


def test_its_spec_survives_the_trip_through_json(teacher):
    data = json.loads(json.dumps(teacher.spec.to_json()))
    assert (data["cls_rule"], data["patch_rule"], data["summary_rules"]) == (
        "norm-cls",
        "norm-patch",
        {"cls-1": "norm-cls:1"},
    )
    assert TeacherSpec.from_json(data) == teacher.spec


def test_what_is_not_finite_is_flagged_by_kind_and_told_when_the_flags_are_checked(teacher, views):
    teacher.model.prefix.register_forward_hook(lambda _, __, out: out.index_fill(1, torch.tensor([9]), torch.nan))
    flags = finite(teacher.tokens(views[:3]))
    assert {kind: values.tolist() for kind, values in flags.items()} == {
        "cls": [True] * 3,
        "cls-1": [False] * 3,
        "patch": [True] * 3,
    }
    with pytest.raises(
        TeacherError, match=r"teacher two: NaN or infinite cls-1 features for 3 of 3 images, at \[0, 1, 2\]"
    ):
        teacher.check(flags)
    with pytest.raises(TeacherError, match="NaN or infinite cls-1 features"):
        teacher(views[:3])


def test_a_call_waits_for_the_device_once_for_all_kinds(teacher, views, monkeypatch):
    waits, honest = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: waits.append(tuple(tensor.shape)) or honest(tensor))
    teacher(views[:5])
    assert waits == [(3, 5)]


def test_a_calibration_uploads_its_tables_once(monkeypatch):
    calibration = Calibration({"cls": np.full(3, 2.0)}, {"cls": np.full(3, 4.0)}, {})
    uploads, honest = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda values: uploads.append(values) or honest(values))
    for value in (2.0, 6.0, 10.0):
        found = calibration.standardize({"cls": torch.full((2, 3), value)})
        assert torch.equal(calibration.destandardize(found)["cls"], torch.full((2, 3), value))
    assert len(uploads) == 2


def test_a_map_goes_with_no_class_token():
    with pytest.raises(TeacherError, match=r"teacher two: rules norm-cls, norm-map do not go together: beside a map"):
        dataclasses.replace(SPEC, summary_rules={"cls": "norm-cls"}, grid_rules={"patch": "norm-map"})


@pytest.mark.parametrize(("codec", "sampled"), [("f16", None), ("klt", None), ("int8", 5), ("klt", 5)])
def test_from_calibration_to_the_public_reader(tmp_path, teacher, views, codec, sampled):
    location = LocalFolder(tmp_path / "cache")
    spec = {
        "format": FORMAT,
        "teacher": {"name": "two"},
        "features": kinds_to_json(teacher.spec.kinds),
        "codec": codec,
        "tokens": sampled,
        "quality": 0.98,
    }
    member = Member.ensure(location, "two", spec)
    assert member.features is not None
    assert list(member.features.kinds.items()) == list(KINDS.items())
    kept_BN = None if sampled is None else torch.arange(sampled).expand(ROWS, sampled)
    tokens = teacher(views)
    calibrator = Calibrator(member.features)
    halfway = Calibrator(member.features)
    halfway.update({kind: x[:32] for kind, x in tokens.items()}, None if kept_BN is None else kept_BN[:32])
    calibrator.restore(halfway.state())
    calibrator.update({kind: x[32:] for kind, x in tokens.items()}, None if kept_BN is None else kept_BN[32:])
    data = calibrator.calibration().to_bytes()
    location.create(member.calibration_name, data)
    assert member.codec is not None
    assert [(array.name, array.row) for array in member.codec.arrays[:2]] == [("cls", (8,)), ("cls-1", (8,))]
    assert {array.dtype for array in member.codec.arrays[:2]} == {"float16"}

    calibration = Calibration.from_bytes(data, "here")
    exact = calibration.standardize(tokens)
    kept = {**exact, "patch": exact["patch"] if sampled is None else exact["patch"][:, :sampled]}
    encoded = member.codec.encode(kept)
    assert (encoded.clipped_B is not None) == (codec == "klt")
    entry = ShardEntry.of("tar0", 2**20, range(ROWS), range(0, 1024 * ROWS, 1024), [300] * ROWS, [None] * ROWS)
    extend_index(location, [entry])
    unit = open_cache(tmp_path / "cache").unit(0, 0, "unic-32-0-000")
    arrays = {name: values.numpy() for name, values in encoded.arrays.items()}
    UnitWriter(member, crc32c(data)).write(unit, arrays, np.zeros(ROWS, np.uint32), {})

    cached = open_cache(tmp_path / "cache").teachers["two"]
    assert list(cached.kinds.items()) == list(KINDS.items())
    record, rows = cached.record(unit), [7, 3, 59]
    found = cached.features(record, rows)
    assert list(found) == list(KINDS)
    for kind in ("cls", "cls-1"):
        assert torch.equal(found[kind], exact[kind][rows].half().float())
        assert cached.calibration.fidelity[kind] > 0.999999
    cosine = torch.cosine_similarity(found["patch"], kept["patch"][rows], dim=-1)
    assert found["patch"].shape == (3, sampled or 16, 8)
    assert cosine.mean() > (0.95 if codec == "klt" else 0.9995)
    (alone,) = cached.features(record, rows, ["cls-1"]).items()
    assert alone[0] == "cls-1"
    assert torch.equal(alone[1], found["cls-1"])
    with pytest.raises(CacheError, match="two has no cls-2 tokens, only cls, cls-1, patch"):
        cached.features(record, rows, ["cls-2"])


@pytest.mark.parametrize("codec", ["klt", "f16", "int8", "int4"])
def test_two_grid_kinds_are_stored_side_by_side(codec):
    features = Features(codec, in_order({"dense": TokenKind(4, (3, 3)), "patch": TokenKind(6, (3, 3))}), quality=0.97)
    draws = torch.Generator().manual_seed(2)
    tokens = {kind: torch.randn(60, 9, found.channels, generator=draws) for kind, found in features.kinds.items()}
    calibrator = Calibrator(features)
    calibrator.update(tokens)
    calibration = Calibration.from_bytes(calibrator.calibration().to_bytes(), "here")
    own: FeatureCodec = calibration.codec(features)
    assert {array.name for array in own.arrays} >= {"patch", "dense"}
    exact = calibration.standardize(tokens)
    decoded = own.decode(own.encode(exact).arrays)
    for kind in ("patch", "dense"):
        cosine = torch.cosine_similarity(decoded[kind], exact[kind], dim=-1).mean()
        assert cosine == pytest.approx(calibration.fidelity[kind], abs=0.02)
        assert cosine > 0.95


def test_kinds_of_one_teacher_on_several_grids_are_refused():
    with pytest.raises(CacheError, match="token kinds on several grids"):
        Features("f16", {"patch": TokenKind(6, (3, 3)), "dense": TokenKind(4, (6, 6))})


@pytest.mark.parametrize(
    "kinds", [{}, {"cls": TokenKind(3)}, {"patch": TokenKind(3, (1, 2))}, KINDS, {"dense": TokenKind(3, (9, 9))}]
)
def test_kinds_survive_the_trip_through_json(kinds):
    data = json.loads(json.dumps(kinds_to_json(kinds)))
    assert list(kinds_from_json(data).items()) == list(kinds.items())
    assert ("kinds" in data) == bool(kinds.keys() - {"cls", "patch"})


@pytest.mark.parametrize("name", ["cls", "patch", "a_b", "../up", "", "A"])
def test_other_names_of_further_kinds_are_refused(name):
    data = {**kinds_to_json({}), "kinds": {name: {"channels": 3, "grid": None}}}
    with pytest.raises(ValueError, match="is not a name of a further token kind"):
        kinds_from_json(data)
