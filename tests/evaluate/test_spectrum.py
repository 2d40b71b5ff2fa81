"""Principal dimensions against numpy's singular values."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from unic_cache.errors import ConfigError
from unic_cache.evaluate import spectrum as module
from unic_cache.evaluate.spectrum import first_components, spectrum


def decaying(count: int, channels: int, seed: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(channels, channels)))[0]
    return 100 + rng.normal(size=(count, channels)) / np.arange(1, channels + 1) @ turned


def test_dimensions_and_rank_equal_those_of_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 170)  # many blocks, the last one of each array partial
    one, other = decaying(55, 12, 1), decaying(30, 12, 2)
    found = spectrum([one, other])
    centred = np.concatenate([one, other])
    centred = centred - centred.mean(axis=0)
    shares = np.linalg.svd(centred, compute_uv=False) ** 2
    shares /= shares.sum()
    for name, share in (("90", 0.9), ("95", 0.95), ("99", 0.99)):
        assert found.dimensions[name] == next(n for n in range(1, 13) if shares[:n].sum() >= share)
    assert len(set(found.dimensions.values())) == 3
    assert found.effective_rank == pytest.approx(np.exp(-sum(share * np.log(share) for share in shares)))
    assert found.channels == 12


def test_tokens_count_one_by_one_and_half_precision_loses_nothing_further() -> None:
    tokens = (decaying(60, 8, 1) - 100).astype(np.float16)
    assert spectrum([tokens.reshape(10, 6, 8)]) == spectrum([tokens.astype(np.float64)])


def test_the_rank_of_equal_variances_is_their_number() -> None:
    corners = np.eye(6)[:, :4]  # 4 directions of equal variance, and 2 images at the origin
    corners = np.concatenate([corners, -corners])
    found = spectrum([np.pad(corners, ((0, 0), (0, 5)))])
    assert found.effective_rank == pytest.approx(4)
    assert found.dimensions == {"90": 4, "95": 4, "99": 4}
    assert found.channels == 9


def test_projections_equal_singular_vectors_of_training_features() -> None:
    train, test = decaying(50, 8, 1), decaying(20, 8, 2)
    projected = first_components(torch.from_numpy(train).float(), torch.from_numpy(test).float())
    mean = train.mean(axis=0)
    vectors = np.linalg.svd(train - mean, full_matrices=False)[2]
    for side, found in zip((train, test), projected, strict=True):
        expected = (side - mean) @ vectors.T
        signs = np.sign((found.numpy() * expected).sum(axis=0))
        assert found.numpy() * signs == pytest.approx(expected, abs=1e-4)


def test_what_spans_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="the features of all images are equal"):
        spectrum([np.ones((5, 3))])
    with pytest.raises(ConfigError, match="features are not finite"):
        spectrum([np.array([[1.0, np.nan], [2.0, 3.0]])])
    with pytest.raises(ConfigError, match="no features"):
        spectrum([np.ones((0, 3))])
