"""Segmentation against torch's own batch norm, convolution, up-sampling and loss, and counts against sets of pixels."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.evaluate.scenes import CHANNELS, HEIGHT, PIXELS, WIDTH, segmented
from unic_cache.errors import ConfigError
from unic_cache.evaluate import dense
from unic_cache.evaluate import segmentation as module
from unic_cache.evaluate.segmentation import segmentation
from unic_cache.evaluate.task import Examples, Metrics, Settings

NUMBERS = [0, 3, 200]
STEPS = 80


def values(metrics: Metrics) -> dict[str, float]:
    return {name: float(one.statistic(np.asarray(one.sums_NF).sum(axis=0))) for name, one in metrics.items()}


def image(tokens: np.ndarray) -> torch.Tensor:
    """(B, D, h, w)"""
    return torch.from_numpy(tokens.astype(np.float32)).transpose(1, 2).reshape(-1, CHANNELS, HEIGHT, WIDTH)


def targets(masks: np.ndarray) -> torch.Tensor:
    found = np.full(masks.shape, 255)
    for place, number in enumerate(NUMBERS):
        found[masks == number] = place
    return torch.from_numpy(found)


def naive_head(train: Examples, seed: int) -> torch.nn.Module:
    """Trained on all pixels by torch's own modules; the running statistics are those of all training tokens."""
    assert train.patches_NTD is not None
    assert train.masks_NHW is not None
    norm, layer = torch.nn.BatchNorm2d(CHANNELS, affine=False, momentum=None), torch.nn.Conv2d(CHANNELS, 3, 1)
    everything = image(train.patches_NTD)
    norm.running_mean = everything.mean(dim=(0, 2, 3))
    norm.running_var = everything.var(dim=(0, 2, 3), correction=0)
    head = torch.nn.Sequential(norm, layer).eval()
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=1e-4)
    warm = max(1, round(STEPS * 1500 / 80_000))
    for step, rows in enumerate(dense.batches(len(everything), STEPS, seed)):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / warm) * (1 - step / STEPS)
        optimizer.zero_grad()
        logits = functional.interpolate(head(everything[rows]), size=PIXELS, mode="bilinear", align_corners=False)
        functional.cross_entropy(logits, targets(train.masks_NHW[rows]), ignore_index=255).backward()
        optimizer.step()
    return head


def test_with_all_pixels_it_equals_torchs_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_TOKEN", 6)  # each of the pixels
    monkeypatch.setattr(dense, "ROWS", 7)
    train, test = segmented(30, 1), segmented(20, 2)
    metrics = segmentation(train, test, Settings(seed=4, steps=STEPS))
    assert test.patches_NTD is not None
    assert test.masks_NHW is not None
    tokens = image(test.patches_NTD)
    logits = functional.interpolate(naive_head(train, 4)(tokens), size=PIXELS, mode="bilinear", align_corners=False)
    predicted, truth = logits.argmax(dim=1).numpy(), targets(test.masks_NHW).numpy()
    known = truth != 255
    for k in range(3):
        both = ((predicted == k) & (truth == k) & known).sum(axis=(1, 2))
        either = (((predicted == k) | (truth == k)) & known).sum(axis=(1, 2))
        sums = np.asarray(metrics["mIoU"].sums_NF)
        assert sums[:, k] == pytest.approx(both, abs=2)  # a pixel on the edge may fall to either side
        assert sums[:, 3 + k] == pytest.approx(either, abs=4)
    found = values(metrics)
    assert found["pixel accuracy"] == pytest.approx((predicted == truth)[known].mean(), abs=1e-3)
    assert found["mIoU"] == pytest.approx(np.mean(list((metrics["mIoU"].per_class or {}).values())))
    assert found["mIoU"] > 0.7


def test_counts_equal_sets_of_pixels_and_never_the_unknown() -> None:
    test = segmented(6, 2)
    assert test.masks_NHW is not None
    test.masks_NHW[3] = 255  # nothing is known of an image
    metrics = segmentation(segmented(30, 1), test, Settings(steps=20))
    pixels = np.asarray(metrics["pixel accuracy"].sums_NF)
    assert pixels[:, 1].tolist() == (test.masks_NHW != 255).sum(axis=(1, 2)).tolist()
    sums = np.asarray(metrics["mIoU"].sums_NF)
    assert sums[:, :3].sum(axis=1).tolist() == pixels[:, 0].tolist()
    assert not sums[3].any()


def test_a_lattice_of_pixels_learns_what_all_pixels_teach() -> None:
    train, test = segmented(60, 1), segmented(40, 2)
    lattice = values(segmentation(train, test, Settings(steps=200)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PER_TOKEN", 6)
        everything = values(segmentation(train, test, Settings(steps=200)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PER_TOKEN", 1)
        sparse = values(segmentation(train, test, Settings(steps=200)))
    assert lattice["mIoU"] == pytest.approx(everything["mIoU"], abs=0.02)
    assert sparse["mIoU"] == pytest.approx(everything["mIoU"], abs=0.04)
    assert everything["mIoU"] > 0.7


def test_the_head_arrives_although_channels_say_nearly_the_same() -> None:
    """As a network's do. At a rate of 1e-3 the first mIoU is 0.86, the second 0.96."""
    train, test = (
        dataclasses.replace(side, patches_NTD=(side.patches_NTD + common_to_channels(side)).astype(np.float32))
        for side in (segmented(60, 1), segmented(40, 2))
    )
    few, many = (values(segmentation(train, test, Settings(steps=steps)))["mIoU"] for steps in (1000, 4000))
    assert few == pytest.approx(many, abs=0.03)
    assert few > 0.93


def common_to_channels(side: Examples) -> np.ndarray:
    """(N, T, 1): noise ten times what tells classes apart."""
    assert side.patches_NTD is not None
    return 10 * np.random.default_rng(1).normal(size=(*side.patches_NTD.shape[:2], 1))


def test_tokens_and_masks_may_be_mapped_from_files(tmp_path: Path) -> None:
    sides = segmented(20, 1), segmented(10, 2)
    mapped = []
    for number, side in enumerate(sides):
        arrays = {"patches_NTD": side.patches_NTD, "masks_NHW": side.masks_NHW}
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}{number}.npy", array)
        own = {name: np.load(tmp_path / f"{name}{number}.npy", mmap_mode="r") for name in arrays}
        mapped.append(dataclasses.replace(side, **own))
    one, other = (segmentation(*pair, Settings(steps=20))["mIoU"].sums_NF for pair in (sides, mapped))
    assert np.array_equal(np.asarray(one), np.asarray(other))


def test_it_is_a_function_of_the_seed() -> None:
    train, test = segmented(20, 1), segmented(10, 2)
    one, again, other = (
        np.asarray(segmentation(train, test, Settings(seed=seed, steps=20))["mIoU"].sums_NF) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_what_cannot_be_segmented_is_refused() -> None:
    train, test = segmented(20, 1), segmented(10, 2)
    settings = Settings(steps=2)
    assert train.masks_NHW is not None

    def using(side: Examples, **changes) -> Examples:
        return dataclasses.replace(side, **changes)

    with pytest.raises(ConfigError, match=r"1 of 3 classes of the test images have no training images: 200; number"):
        segmentation(segmented(20, 1, (3, 0)), test, settings)
    with pytest.raises(ConfigError, match=r"the training masks have only class 3 \(255 is unknown\)"):
        segmentation(using(train, masks_NHW=np.full_like(train.masks_NHW, 3)), test, settings)
    with pytest.raises(ConfigError, match="the training masks have no pixel of any class"):
        segmentation(using(train, masks_NHW=np.full_like(train.masks_NHW, 255)), test, settings)
    with pytest.raises(ConfigError, match="the test masks have no pixel of any class, only 255"):
        segmentation(train, using(train, masks_NHW=np.full_like(train.masks_NHW, 255)), settings)
    with pytest.raises(ConfigError, match="20 training images do not go with 0 masks"):
        segmentation(using(train, masks_NHW=None), test, settings)
    with pytest.raises(ConfigError, match="the test images have no patch tokens"):
        segmentation(train, using(test, patches_NTD=None), settings)
    with pytest.raises(ConfigError, match="20 training tokens are not a grid of 4 x 4"):
        segmentation(using(train, grid=(4, 4)), test, settings)
    assert test.patches_NTD is not None
    with pytest.raises(ConfigError, match=r"training tokens \(height, width, channels\) are \(4, 5, 12\) and test tok"):
        segmentation(train, using(test, patches_NTD=test.patches_NTD[:, :, 1:]), settings)
    broken = test.patches_NTD.copy()
    broken[4, 3, 2] = np.inf
    with pytest.raises(ConfigError, match="patch features of some image in rows 0 to 9 are not finite"):
        segmentation(train, using(test, patches_NTD=broken), settings)
