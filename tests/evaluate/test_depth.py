"""Depth against torch's own modules and loops over pixels."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.evaluate.scenes import CHANNELS, HEIGHT, PIXELS, WIDTH, ramps
from unic_cache import draws
from unic_cache.errors import ConfigError
from unic_cache.evaluate import dense
from unic_cache.evaluate import depth as module
from unic_cache.evaluate.depth import depth
from unic_cache.evaluate.depth_losses import gradient_loss, log_errors, sig_loss
from unic_cache.evaluate.task import Examples, Metrics, Numbers, Settings

STEPS = 12


def values(metrics: Metrics) -> dict[str, float]:
    return {name: float(one.statistic(np.asarray(one.sums_NF).sum(axis=0))) for name, one in metrics.items()}


def naive_sig(predicted: Numbers, truth: Numbers, warm_up: bool) -> float:
    g = [math.log(p + 1e-3) - math.log(t + 1e-3) for p, t in zip(predicted.flat, truth.flat, strict=True) if t > 0]
    centre = sum(g) / len(g)
    variance = sum((value - centre) ** 2 for value in g) / (len(g) - 1)
    return math.sqrt((0 if warm_up else variance) + 0.15 * centre**2)


def naive_gradient(predicted: Numbers, truth: Numbers) -> float:
    total = 0.0
    for stride in (1, 2, 4, 6):
        p, t = predicted[:, ::stride, ::stride], truth[:, ::stride, ::stride]
        found = 0.0
        for b, y, x in np.ndindex(*t.shape):
            for other in ((b, y + 2, x), (b, y, x + 2)):
                if other[1] < t.shape[1] and other[2] < t.shape[2] and t[b, y, x] > 0 and t[other] > 0:
                    here, there = (math.log(p[at] + 1e-3) - math.log(t[at] + 1e-3) for at in ((b, y, x), other))
                    found += abs(here - there)
        total += found / (t > 0).sum()
    return total


def test_losses_equal_loops_over_pixels() -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.uniform(0.5, 8, (2, 3, 11, 9))
    truth[rng.random(truth.shape) < 0.2] = 0
    errors = log_errors(torch.from_numpy(predicted), torch.from_numpy(truth))
    for warm_up in (True, False):
        assert float(sig_loss(*errors, warm_up)) == pytest.approx(naive_sig(predicted, truth, warm_up))
    assert float(gradient_loss(*errors)) == pytest.approx(naive_gradient(predicted, truth))


def test_a_perfect_prediction_has_a_finite_gradient() -> None:
    truth = torch.full((1, 4, 4), 2.0)
    predicted = truth.clone().requires_grad_()
    errors = log_errors(predicted, truth)
    (sig_loss(*errors, warm_up=False) + gradient_loss(*errors)).backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def image(examples: Examples, rows: np.ndarray) -> Tensor:
    """Tokens and the image's summary beside each, up-sampled 4 times, (B, D + S, 4h, 4w): the published order."""
    assert examples.patches_NTD is not None
    tokens = torch.from_numpy(examples.patches_NTD[rows].astype(np.float32))
    both = torch.cat([tokens, examples.summary_ND[rows][:, None].expand(-1, tokens.shape[1], -1)], dim=2)
    grid = both.transpose(1, 2).reshape(len(rows), -1, HEIGHT, WIDTH)
    return functional.interpolate(grid, scale_factor=4, mode="bilinear", align_corners=False)


class NaiveHead(torch.nn.Module):
    def __init__(self, train: Examples, seed: int) -> None:
        super().__init__()
        assert train.patches_NTD is not None
        inputs = CHANNELS + train.summary_ND.shape[1]
        self.norm, self.layer = torch.nn.BatchNorm2d(inputs, affine=False), torch.nn.Conv2d(inputs, 256, 1)
        tokens = torch.from_numpy(train.patches_NTD.astype(np.float32)).flatten(0, 1)
        self.norm.running_mean = torch.cat([tokens.mean(0), train.summary_ND.mean(0)])
        self.norm.running_var = torch.cat([side.var(0, correction=0) for side in (tokens, train.summary_ND)])
        raw = draws.words(draws.Purpose.HEAD_INIT, seed, 0, 0, inputs * 256)
        uniform = torch.from_numpy(draws.uniforms(raw)).float().view(inputs, 256)
        with torch.no_grad():
            self.layer.weight.copy_(((2 * uniform - 1) * 0.01 * math.sqrt(3)).T[:, :, None, None])
            self.layer.bias.zero_()
        self.eval()

    def forward(self, features: Tensor) -> Tensor:
        logits = self.layer(self.norm(features)).relu() + 0.1
        chances = logits / logits.sum(dim=1, keepdim=True)
        metres = torch.einsum("bkhw,k->bhw", chances, torch.linspace(0.001, 10, 256))
        return functional.interpolate(metres[:, None], size=PIXELS, mode="bilinear", align_corners=False)[:, 0]


def test_with_whole_images_it_equals_torchs_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 1.0)
    train, test = ramps(20, 1), ramps(9, 2)
    assert train.depths_NHW is not None
    assert test.depths_NHW is not None
    train.depths_NHW[0, 4:8], test.depths_NHW[0, 4:8] = 12, 12  # beyond 10 m: unknown
    head = NaiveHead(train, 4)
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.01)
    truth = torch.from_numpy(np.where(train.depths_NHW > 10, 0, train.depths_NHW))
    for step, rows in enumerate(dense.batches(20, STEPS, 4)):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 4) * (1 + math.cos(math.pi * step / STEPS)) / 2
        optimizer.zero_grad()
        errors = log_errors(head(image(train, rows)), truth[rows])
        (sig_loss(*errors, warm_up=step < 1) + 0.5 * gradient_loss(*errors)).backward()
        optimizer.step()
    metrics = depth(train, test, Settings(seed=4, steps=STEPS))
    predicted = head(image(test, np.arange(9))).detach().double().numpy()
    for number, (ours, truth_HW) in enumerate(zip(predicted, test.depths_NHW, strict=True)):
        known = (truth_HW > 0) & (truth_HW <= 10)
        p, t = ours[known], truth_HW[known]
        expected = {
            "RMSE": math.sqrt(np.mean((p - t) ** 2)),
            "AbsRel": np.mean(np.abs(p - t) / t),
            "delta 1": np.mean(np.maximum(p / t, t / p) < 1.25),
        }
        found = {name: np.asarray(one.sums_NF)[number].tolist() for name, one in metrics.items()}
        assert list(found) == list(expected)
        assert found["RMSE"] == pytest.approx([expected["RMSE"], 1], rel=1e-4)
        assert found["AbsRel"] == pytest.approx([expected["AbsRel"], 1], rel=1e-4)
        assert found["delta 1"] == pytest.approx([expected["delta 1"], 1], abs=0.01)


def test_it_learns_ramps_from_windows_far_better_than_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATE", 0.02)  # 15 inputs are few: their weights have far to go
    monkeypatch.setattr(module, "WINDOW", 0.5)
    train, test = ramps(60, 1), ramps(20, 2)
    found = values(depth(train, test, Settings(steps=120)))
    assert train.depths_NHW is not None
    assert test.depths_NHW is not None
    average = train.depths_NHW[train.depths_NHW > 0].mean()
    errors = [math.sqrt(np.mean((t[t > 0] - average) ** 2)) for t in test.depths_NHW]
    assert found["RMSE"] < np.mean(errors) / 3
    assert found["delta 1"] > 0.9


def test_units_and_directions_are_those_of_each_metric() -> None:
    metrics = depth(ramps(9, 1), ramps(3, 2), Settings(steps=2))
    told = {name: (one.unit, one.higher_is_better) for name, one in metrics.items()}
    assert told == {"RMSE": ("m", False), "AbsRel": ("", False), "delta 1": ("%", True)}


def test_it_is_a_function_of_the_seed() -> None:
    train, test = ramps(9, 1), ramps(3, 2)
    one, again, other = (depth(train, test, Settings(seed=seed, steps=3))["RMSE"].sums_NF for seed in (1, 1, 2))
    assert np.array_equal(np.asarray(one), np.asarray(again))
    assert not np.array_equal(np.asarray(one), np.asarray(other))


def test_images_and_windows_without_known_depth_do_not_count() -> None:
    train, test = ramps(9, 1), ramps(3, 2)
    assert train.depths_NHW is not None
    assert test.depths_NHW is not None
    train.depths_NHW[:, :, 5:] = 0  # most windows have nothing
    test.depths_NHW[1] = 0
    metrics = depth(train, test, Settings(steps=20))
    assert np.asarray(metrics["RMSE"].sums_NF)[:, 1].tolist() == [1, 0, 1]
    assert all(math.isfinite(value) for value in values(metrics).values())


def test_what_cannot_be_learned_is_refused() -> None:
    train, test = ramps(9, 1), ramps(3, 2)
    settings = Settings(steps=2)
    assert train.depths_NHW is not None

    def using(side: Examples, **changes) -> Examples:
        return dataclasses.replace(side, **changes)

    with pytest.raises(ConfigError, match=r"no pixel of the training images has a known depth \(they are all 0\)"):
        depth(using(train, depths_NHW=np.zeros_like(train.depths_NHW)), test, settings)
    with pytest.raises(ConfigError, match=r"\d+ of \d+ known depths of the test images are beyond 10 m.*in metres\?"):
        depth(train, using(train, depths_NHW=train.depths_NHW * 1000), settings)
    with pytest.raises(ConfigError, match="a depth of the training image in row 0 is negative or not finite"):
        depth(using(train, depths_NHW=-train.depths_NHW), test, settings)
    with pytest.raises(ConfigError, match="3 test images do not go with 0 depths"):
        depth(train, using(test, depths_NHW=None), settings)
    with pytest.raises(ConfigError, match=r"features of 9 of 9 images are not finite"):
        depth(using(train, summary_ND=train.summary_ND * torch.nan), test, settings)
