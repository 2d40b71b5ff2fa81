"""Weights files: what is read, what is refused and with which words, and checksums that know only the tensors."""

import argparse
import os
import pathlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from unic_cache.errors import TeacherError
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.teachers.weights import state_sha256
from unic_cache.weights.file import Ignored, read_checkpoint

NAME = "timm:test_vit"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model("test_vit").state_dict()


def saved(tmp_path, content, name="weights.pth", **options) -> str:
    torch.save(content, tmp_path / name, **options)
    return str(tmp_path / name)


class Bomb:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".tar", ".safetensors", ".model"])
def test_every_kind_of_file_gives_the_same_teacher(state, tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file)
    teacher = load_teacher(resolve(NAME), str(file))
    own = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    assert teacher.spec.weights_sha256 == state_sha256(own)
    assert all(torch.equal(teacher.model.state_dict()[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}},
        lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()} | {"head.mlp.weight": torch.ones(2)}},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"state_dict": {f"module.backbone.{k}": v for k, v in state.items()}},
    ],
)
def test_wrappers_and_prefixes_are_taken_off(state, tmp_path, wrap):
    plain = load_teacher(resolve(NAME), saved(tmp_path, state))
    wrapped = load_teacher(resolve(NAME), saved(tmp_path, wrap(state), "wrapped.pth"))
    assert wrapped.spec.weights_sha256 == plain.spec.weights_sha256
    assert wrapped.spec.weights_file_sha256 != plain.spec.weights_file_sha256


@pytest.mark.parametrize("zipped", [True, False])
def test_unpickling_bomb_is_refused_and_does_not_go_off(state, tmp_path, zipped):
    target = tmp_path / "boom"
    file = saved(tmp_path, {"state_dict": state, "extra": Bomb(target)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        TeacherError, match=r"beyond tensors .*refused.* python -c \"import torch; .*weights\.pth\.tensors'\)\"$"
    ):
        load_teacher(resolve(NAME), file)
    assert not target.exists()


def test_bare_pickle_is_refused_and_does_not_go_off(tmp_path):
    target = tmp_path / "boom"
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"model": Bomb(target)}, protocol=2))
    with pytest.raises(TeacherError, match=r"weights\.pth: it is a Python pickle, not a torch\.save file"):
        load_teacher(resolve(NAME), str(tmp_path / "weights.pth"))
    assert not target.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_beside_the_tensors_is_passed_over_without_running_numpys_code(state, tmp_path, zipped):
    args = argparse.Namespace(lr_schedule=np.linspace(0, 1, 5), epochs=np.int64(3), ema=np.float32(0.9), names=["a"])
    beside = {"accuracy": np.float64(0.8), "args": args, "order": np.arange(4)[::2], "done": np.array([True])}
    file = saved(tmp_path, {"model": state, **beside}, _use_new_zipfile_serialization=zipped)
    plain = load_teacher(resolve(NAME), saved(tmp_path, state, "plain.pth"))
    assert load_teacher(resolve(NAME), file).spec.weights_sha256 == plain.spec.weights_sha256
    assert type(read_checkpoint(Path(file))["order"]) is Ignored


def test_the_line_that_converts_a_file_gives_one_that_loads(state, tmp_path):
    file = saved(tmp_path, {"model": state, "args": pathlib.PurePosixPath("x")})
    with pytest.raises(TeacherError, match="refused") as caught:
        load_teacher(resolve(NAME), file)
    exec(re.search(r'python -c "(.*)"', str(caught.value))[1], {})
    plain = load_teacher(resolve(NAME), saved(tmp_path, state, "plain.pth"))
    assert load_teacher(resolve(NAME), f"{file}.tensors").spec.weights_sha256 == plain.spec.weights_sha256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "none.pth: there is no such file"),
        ("weights.onnx", b"\x08\x07\x12\x07pytorch", r"weights.onnx: it is an ONNX graph, but only PyTorch and safe"),
        ("short.pth", b"PK\x03\x04 and no more", r"short.pth: it is damaged or not a PyTorch file"),
        ("text.pth", b"hello", r"text.pth: it is text, not weights: 'hello'"),
        ("noise.pth", bytes(range(128, 256)), r"noise.pth: it is damaged or not a PyTorch file"),
        ("empty.pt", b"", r"empty.pt: it is empty; download it again"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TeacherError, match=message):
        load_teacher(resolve(NAME), str(tmp_path / name))


@pytest.mark.parametrize("content", [{"epoch": 3}, {"model": {}}, [torch.zeros(2)], torch.zeros(2)])
def test_file_without_named_tensors_is_refused(tmp_path, content):
    with pytest.raises(TeacherError, match="no tensors in it, neither flat nor under state_dict, model, teacher"):
        load_teacher(resolve(NAME), saved(tmp_path, content))


def test_wrong_shape_names_both_shapes(state, tmp_path):
    with pytest.raises(TeacherError, match=r"norm\.bias is \(7,\), expected \(64,\)\. Are they another model's"):
        load_teacher(resolve(NAME), saved(tmp_path, {**state, "norm.bias": torch.zeros(7)}))


def test_missing_and_unexpected_keys_are_named(state, tmp_path):
    changed = {name: tensor for name, tensor in state.items() if name != "norm.bias"} | {"bias": torch.zeros(3)}
    with pytest.raises(TeacherError, match=r"norm\.bias \(64,\) is missing; bias \(3,\) is not part of it"):
        load_teacher(resolve(NAME), saved(tmp_path, changed))


def test_no_more_than_three_offenders_are_named(tmp_path):
    other = timm.create_model("test_vit2").state_dict()
    with pytest.raises(
        TeacherError, match=r"^the weights of teacher timm:test_vit from [^;]*;[^;]*;[^;]*; and \d+ more"
    ):
        load_teacher(resolve(NAME), saved(tmp_path, other))


def test_weights_that_fit_at_their_own_size_only_say_so(tmp_path):
    state = timm.create_model("gmlp_ti16_224", num_classes=0).state_dict()
    with pytest.raises(TeacherError, match=r"at 64 px do not fit .*is \(196, 196\), expected \(16, 16\)"):
        load_teacher(resolve("timm:gmlp_ti16_224@64"), saved(tmp_path, state))


def test_checksum_sees_every_name_shape_type_and_byte_and_no_order():
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(6.0).reshape(3, 2).reshape(2, 3)}
    changed = [
        {**base, "b": torch.tensor(4)},
        {**base, "b": torch.tensor(3, dtype=torch.int32)},
        {**base, "a": torch.arange(6.0).reshape(3, 2)},
        {**base, "a": torch.nextafter(base["a"], torch.tensor(9.0))},
        {"c": base["a"], "b": base["b"]},
    ]
    assert state_sha256(same) == state_sha256(base)
    assert len({state_sha256(state) for state in [base, *changed]}) == 6


def test_checksum_does_not_depend_on_the_input_size(state, tmp_path):
    file = saved(tmp_path, state)
    sums = {load_teacher(resolve(f"{NAME}@{size}"), file).spec.weights_sha256 for size in (160, 64)}
    assert len(sums) == 1
