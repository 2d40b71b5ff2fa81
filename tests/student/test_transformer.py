"""DUNE's projectors against the block and the linear layers called by hand, one image and one teacher at a time."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from unic_cache.errors import ConfigError
from unic_cache.student.drop_path import PlacedDropPath, place_drop_path
from unic_cache.student.ladder import SHARED, head_name, resample_tokens
from unic_cache.student.transformer import LAYER_SCALE, TransformerProjector, attention_heads
from unic_cache.token_kinds import TokenKind

TARGETS = {
    "dino": {"cls": TokenKind(5), "patch": TokenKind(5, (3, 2))},
    "clip.b": {"cls": TokenKind(4), "patch": TokenKind(6, (2, 2))},
    "sam": {"patch": TokenKind(3, (3, 2))},
    "radio": {"one": TokenKind(5), "two": TokenKind(5), "patch": TokenKind(5, (3, 2))},
}
GRID = (3, 2)
GRIDS = (GRID,) * 3


def made(**changes) -> TransformerProjector:
    return TransformerProjector([(64, 64)] * 3, TARGETS, **{"seed": 1, **changes}).double()


def blocks(batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(batch, 64, generator=generator).double(), torch.randn(batch, 6, 64, generator=generator).double())
        for _ in range(3)
    ]


def test_guesses_are_a_block_and_a_linear_layer_per_teacher_on_the_last_output_alone():
    projector, outputs = made(), blocks(2)
    for layer in projector.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.bias)
    seen = {(2, 2): torch.tensor([[3, 0], [1, 2]])}
    guesses = projector(outputs, GRIDS, seen)
    again = projector([(cls * 0, patch * 0) for cls, patch in outputs[:-1]] + outputs[-1:], GRIDS, seen)
    cls_BD, patch_BTD = outputs[-1]
    for name, kinds in TARGETS.items():
        head = projector.heads[head_name(name, SHARED)]
        for image in range(2):
            tokens = head.block(torch.cat([cls_BD[image, None], patch_BTD[image]])[None])
            for kind, of in kinds.items():
                key = head_name("", SHARED if name == "dino" else kind)
                linear = head.linear[key]
                expected = linear(tokens[:, 0] if of.grid is None else tokens[:, 1:])
                if of.grid is not None:
                    expected = resample_tokens(expected, GRID, of.grid)
                    expected = expected[:, seen[of.grid][image]] if of.grid in seen else expected
                torch.testing.assert_close(guesses[name][kind][image], expected[0])
                assert torch.equal(again[name][kind], guesses[name][kind])


def test_one_linear_layer_serves_both_kinds_only_if_they_are_one_summary_and_one_grid_of_a_width():
    layers = {name: list(made().heads[head_name(name, SHARED)].linear) for name in TARGETS}
    assert layers == {
        "dino": [":*"],
        "clip.b": [":cls", ":patch"],
        "sam": [":patch"],
        "radio": [":one", ":two", ":patch"],
    }


def test_weights_depend_on_the_seed_alone_and_the_block_begins_as_almost_nothing():
    one, same, other = made(), made(), made(seed=2)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.heads["sam:*"].linear[":patch"].weight, other.heads["sam:*"].linear[":patch"].weight)
    head = one.heads["sam:*"]
    assert head.block.ls1.gamma.unique().item() == pytest.approx(LAYER_SCALE)
    tokens = blocks(1)[-1][1]
    assert (head.block(tokens) - tokens).abs().max() < 0.01


@pytest.mark.parametrize(
    ("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1536, 24), (2048, 32), (64, 1), (48, 1), (100, 1)]
)
def test_heads_are_as_many_as_in_timms_vits(width, heads):
    assert attention_heads(width) == heads


def test_the_ladders_settings_and_silent_teachers_are_refused():
    for changes, message in (
        ({"hidden": (8, 8)}, "--ladder-widths are for"),
        ({"shared": True}, "--shared-projectors is"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(**changes)
    with pytest.raises(ConfigError, match="teacher mute gives no tokens"):
        TransformerProjector([(64, 64)] * 3, {"mute": {}}, seed=0)
    with pytest.raises(ConfigError, match="of equal width, and this student's have 32 and 64 channels"):
        TransformerProjector([(64, 64), (32, 64)], TARGETS, seed=0)


class TestDropPath:
    def test_a_whole_batch_is_dropped_as_timm_drops_it(self):
        x = torch.randn(8, 3, 5)
        theirs = nn.Sequential(DropPath(0.4), DropPath(0.2))
        ours = nn.Sequential(DropPath(0.4), DropPath(0.2))
        places = place_drop_path(ours)
        assert all(isinstance(layer, PlacedDropPath) for layer in ours)
        for batch in (None, 8):
            places.batch = batch
            found = []
            for network in (theirs, ours):
                torch.manual_seed(3)
                found.append(network(x))
            assert torch.equal(*found)
            assert 0 < sum(not image.any() for image in found[0]) < 8
        assert torch.equal(ours.eval()(x), x)

    def test_parts_of_a_batch_are_dropped_as_the_whole(self):
        x = torch.randn(8, 3, 5)
        network = nn.Sequential(DropPath(0.4), nn.Linear(5, 5), DropPath(0.2))
        places = place_drop_path(network)
        torch.manual_seed(3)
        whole = network(x)
        parts = []
        for first in (0, 2, 4, 6):
            places.at(first, 2, 8, torch.device("cpu"))
            torch.manual_seed(3)
            parts.append(network(x[first : first + 2]))
        torch.testing.assert_close(torch.cat(parts), whole)
