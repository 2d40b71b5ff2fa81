"""Stochastic depth: an image's draws are the same in a part of the batch as in the whole, whatever rows it has."""

import timm
import torch
from timm.layers import DropPath

from unic_cache.student.drop_path import PlacedDropPath, Places, place_drop_path


def dropped(places: Places, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(5)
    return PlacedDropPath(DropPath(0.5), places).train()(x)


def test_a_part_of_the_batch_drops_what_the_whole_does_with_any_number_of_rows_of_an_image():
    for rows in (1, 3):
        x = torch.randn(8 * rows, 7)
        whole, part = Places(), Places()
        whole.at(0, 8, 8, x.device)
        part.at(2, 4, 8, x.device)
        kept = dropped(whole, x)
        assert 0 < int((kept == 0).all(dim=1).sum()) < len(x)
        assert torch.equal(dropped(part, x[2 * rows : 6 * rows]), kept[2 * rows : 6 * rows])


def test_one_row_of_an_image_draws_as_timm_does():
    x = torch.randn(16, 3, 5)
    torch.manual_seed(5)
    theirs = DropPath(0.5).train()(x)
    assert torch.equal(dropped(Places(), x), theirs)


def test_networks_with_a_row_for_each_patch_train():
    for name, size in (("mobilevit_xxs", 64), ("tnt_s_legacy_patch16_224", 224)):
        with torch.device("meta"):
            encoder = timm.create_model(name, num_classes=0, drop_path_rate=0.2).train()
            place_drop_path(encoder).at(0, 2, 2, torch.device("meta"))
            assert len(encoder(torch.empty(2, 3, size, size))) == 2
