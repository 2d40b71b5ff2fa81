"""A network's tensors are found by their names in any checkpoint, and which ones were taken is told."""

import random
from pathlib import Path

import pytest
import torch

from unic_cache.errors import WeightsError
from unic_cache.weights.state_dicts import find, first_names, without_shared_prefix

SHAPES = {f"blocks.{n}.{part}": (2, n + 1) for n in range(4) for part in ("w", "b")} | {"norm.w": (3,)}
FILE = Path("teacher.pth")


def network(value: float = 0.0, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: torch.full(shape, value) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (network(), ""),
        (network(prefix="_orig_mod."), "_orig_mod."),
        ({"state_dict": network(prefix="model.")}, "state_dict.model."),
        ({"model": network(prefix="module.backbone.") | {"module.head.w": torch.zeros(1)}}, "model.module.backbone."),
        ({"epoch": 3, "nested": {"net": network(prefix="encoder.")}}, "nested.net.encoder."),
        (network(prefix="visual.") | {"logit_scale": torch.ones(())}, "visual."),
        ({"model": network(), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "model."),
    ],
)
def test_wrappers_and_prefixes_of_any_name_are_seen_through(content, taken, caplog):
    found = find(content, SHAPES, FILE)
    assert found.taken == taken
    assert {name: tuple(t.shape) for name, t in found.tensors.items() if name in SHAPES} == SHAPES
    assert found.meant
    assert not caplog.text  # there was nothing to choose


@pytest.mark.parametrize(
    ("content", "taken", "left"),
    [
        ({"state_dict_ema": network(1), "state_dict": network(2)}, "state_dict.", "'state_dict_ema'"),
        ({"model_ema": network(1), "model": network(2)}, "model.", "'model_ema'"),
        ({"student": network(1), "teacher": network(2)}, "teacher.", "'student'"),
        (network(1, "student.backbone.") | network(2, "teacher.backbone."), "teacher.backbone.", "'student.backbone'"),
        ({"ema": network(1)} | network(2), "", "'ema'"),
    ],
)
def test_of_several_networks_one_is_taken_by_what_it_is_called_and_that_is_told(content, taken, left, caplog):
    for order in (list(content), list(content)[::-1]):
        caplog.clear()
        found = find({key: content[key] for key in order}, SHAPES, FILE)
        assert found.taken == taken
        assert found.tensors["norm.w"][0] == 2
        assert f"and left {left}" in caplog.text


def test_the_one_of_the_right_shape_goes_before_the_one_of_the_right_name():
    other = {name: torch.zeros(7) for name in SHAPES}
    assert find({"teacher": other, "student": network()}, SHAPES, FILE).taken == "student."


def test_networks_that_cannot_be_told_apart_are_refused():
    both = network(1, "module.base_encoder.") | network(2, "module.momentum_encoder.")
    with pytest.raises(WeightsError, match=r"2 networks that fit, under '.*base_encoder\.' and '.*momentum_encoder\.'"):
        find(both, SHAPES, FILE)
    same = network(1, "module.base_encoder.") | network(1, "module.momentum_encoder.")
    assert find(same, SHAPES, FILE).tensors["norm.w"][0] == 1


def test_the_order_of_names_means_nothing():
    names = list(SHAPES)
    content = {name: torch.full(SHAPES[name], float(place)) for place, name in enumerate(names)}
    random.Random(0).shuffle(names)
    found = find({name: content[name] for name in names}, SHAPES, FILE).tensors
    assert all(torch.equal(found[name], content[name]) for name in SHAPES)


def test_a_few_names_in_common_are_not_the_network():
    found = find({"norm.w": torch.ones(3), "layer.w": torch.ones(2)}, SHAPES, FILE)
    assert not found.meant
    assert first_names(found.tensors) == "norm.w, layer.w"


@pytest.mark.parametrize("content", [{"epoch": 3}, {"model": {}}, [torch.zeros(2)], torch.zeros(2), None])
def test_content_without_named_tensors_is_refused(content):
    with pytest.raises(WeightsError, match=r"teacher\.pth: no tensors in it"):
        find(content, SHAPES, FILE)


def test_shared_prefixes_are_taken_off_and_others_stay():
    assert list(without_shared_prefix({"a.b.x": torch.ones(1), "a.b.y": torch.ones(1)})) == ["x", "y"]
    assert list(without_shared_prefix({"a.x": torch.ones(1), "b.y": torch.ones(1)})) == ["a.x", "b.y"]
