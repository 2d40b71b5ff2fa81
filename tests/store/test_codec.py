"""Codecs against numpy, calibration against the whole sample at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from unic_cache.errors import CacheError
from unic_cache.store.calibrate import Calibration, Calibrator
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.store.codecs.fixed import Int4, Int8
from unic_cache.store.codecs.rotation import hadamard
from unic_cache.store.npz import load_npz, save_npz
from unic_cache.token_kinds import TokenKind

KINDS = {"cls": TokenKind(4), "patch": TokenKind(6, (3, 3))}
TOKENS = arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.floats(-1000, 1000, width=32))


@given(TOKENS)
@settings(deadline=None, max_examples=60)
def test_int8_errs_by_half_a_step_of_each_token_at_most(tokens):
    parts = Int8().encode("patch", torch.from_numpy(tokens)).arrays
    decoded = Int8().decode("patch", parts).numpy()
    largest = np.abs(tokens).max(axis=-1, keepdims=True)
    step = parts["patch_scale"].float().numpy()[..., None]
    slack = 127 * np.abs(step - largest / 127)  # the scale itself is rounded to float16
    assert (np.abs(decoded - tokens) <= step / 2 + slack + 1e-6).all()
    assert parts["patch"].dtype == torch.int8


def test_int8_is_the_naive_loop():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 5, generator=generator)
    parts = Int8().encode("patch", tokens).arrays
    for image in range(2):
        for token in range(3):
            values = tokens[image, token].numpy()
            scale = np.float16(np.abs(values).max() / np.float32(127))
            assert parts["patch_scale"][image, token].item() == scale
            codes = [int(np.clip(np.round(value / np.float32(scale)), -127, 127)) for value in values]
            assert parts["patch"][image, token].tolist() == codes


@pytest.mark.parametrize("channels", [2, 6, 64, 112, 384, 768])
def test_the_rotation_is_orthonormal_and_spreads_each_channel(channels):
    matrix = hadamard(channels, torch.device("cpu")).double()
    assert (matrix @ matrix.T - torch.eye(channels)).abs().max() < 1e-6
    if channels & (channels - 1) == 0:
        assert torch.allclose(matrix.abs(), torch.full_like(matrix, channels**-0.5))


@given(TOKENS)
@settings(deadline=None, max_examples=60)
def test_int4_is_the_naive_loop(tokens):
    tokens = np.concatenate([tokens, tokens], axis=-1)  # an even number of channels
    parts = Int4().encode("patch", torch.from_numpy(tokens)).arrays
    channels = tokens.shape[-1]
    matrix = hadamard(channels, torch.device("cpu"))
    for place in np.ndindex(*tokens.shape[:2]):
        rotated = (torch.from_numpy(tokens[place]) @ matrix).numpy()
        scale = parts["patch_scale"][place].item()
        expected = max(0.3352 * np.sqrt(np.mean(rotated.astype(np.float64) ** 2)), 2.0**-14)
        assert scale == pytest.approx(min(expected, 65504), rel=2e-3)
        for channel in range(channels):
            byte = int(parts["patch"][place][channel // 2])
            code = (byte >> 4 if channel % 2 else byte & 15) - 8
            exact = float(rotated[channel]) / scale
            assert -8 <= code <= 7
            assert abs(code + 0.5 - np.clip(exact, -7.999, 7.999)) <= 0.5 + 1e-3 * (1 + abs(exact))


@pytest.mark.parametrize("channels", [112, 384])
def test_int4_keeps_gaussian_tokens_at_cosine_0994(channels):
    scales = torch.logspace(-1, 1, channels)
    tokens = torch.randn(40, 9, channels, generator=torch.Generator().manual_seed(3)) * scales
    decoded = Int4().decode("patch", Int4().encode("patch", tokens).arrays)
    assert torch.cosine_similarity(decoded, tokens, dim=-1).mean() > 0.993


def test_int4_needs_an_even_number_of_channels():
    with pytest.raises(CacheError, match="7 channels are odd; use int8"):
        FeatureCodec(Features("int4", {"patch": TokenKind(7, (2, 2))}))


def test_f16_rounds_to_the_nearest_and_clamps():
    codec = FeatureCodec(Features("f16", {"cls": TokenKind(2), "patch": TokenKind(2, (1, 1))}))
    features = {"cls": torch.tensor([[1e9, -1e9]]), "patch": torch.tensor([[[0.1, 65504.0]]])}
    parts = codec.encode(features).arrays
    assert parts["cls"].tolist() == [[65504.0, -65504.0]]
    assert parts["patch"][0, 0, 0].item() == np.float16(0.1)


@pytest.mark.parametrize("missing", ["cls", "patch"])
def test_a_teacher_may_lack_a_token_type(missing):
    kinds = {"cls": TokenKind(4), "patch": TokenKind(4, (1, 3))}
    features = {"cls": torch.randn(2, 4), "patch": torch.randn(2, 3, 4)}
    del features[missing], kinds[missing]
    codec = FeatureCodec(Features("int8", kinds))
    assert codec.decode(codec.encode(features).arrays).keys() == features.keys()
    assert missing not in {array.name for array in codec.arrays}


class TestCalibration:
    @pytest.fixture
    def tokens(self):
        generator = torch.Generator().manual_seed(1)
        return {
            "cls": 3 * torch.randn(50, 4, generator=generator) + 7,
            "patch": 0.1 * torch.randn(50, 9, 6, generator=generator) - 2,
        }

    def test_is_the_mean_and_std_of_all_images_but_every_fifth(self, tokens):
        calibrator = Calibrator(Features("f16", KINDS))
        for start in range(0, 50, 8):
            calibrator.update({kind: values[start : start + 8] for kind, values in tokens.items()})
        found = calibrator.calibration()
        used = [image for image in range(50) if image % 5 != 4]
        for kind, values in tokens.items():
            flat = values[used].double().numpy().reshape(-1, values.shape[-1])
            assert np.allclose(found.mean[kind], flat.mean(axis=0), rtol=1e-12, atol=1e-12)
            assert np.allclose(found.std[kind], flat.std(axis=0, ddof=1), rtol=1e-12)
        assert 0.999999 < min(found.fidelity.values()) <= 1

    def test_a_channel_at_rest_in_the_sample_cannot_explode_elsewhere(self):
        calibrator = Calibrator(Features("f16", {"cls": TokenKind(5)}))
        calibrator.update({"cls": torch.cat([torch.zeros(40, 1), torch.randn(40, 4)], dim=1)})
        found = calibrator.calibration()
        assert found.std["cls"][0] == pytest.approx(0.01 * np.median(found.std["cls"]), rel=0.5)
        assert found.standardize({"cls": torch.ones(1, 5)})["cls"].abs().max() < 1000

    def test_standardizes_and_back(self, tokens):
        calibrator = Calibrator(Features("f16", KINDS))
        calibrator.update(tokens)
        found = calibrator.calibration()
        standardized = found.standardize(tokens)
        assert standardized["patch"].mean().abs() < 0.1
        back = found.destandardize(standardized)
        assert all((back[kind] - tokens[kind]).abs().max() < 1e-5 for kind in tokens)

    def test_a_dead_channel_gives_zeros_not_infinity(self):
        calibration = Calibration({"cls": np.array([2.0, 0.0])}, {"cls": np.array([0.0, 1.0])}, {})
        assert calibration.standardize({"cls": torch.tensor([[2.0, 5.0]])})["cls"].tolist() == [[0.0, 5.0]]

    def test_round_trips_through_bytes_that_are_the_same_each_time(self, tokens):
        calibrator = Calibrator(Features("f16", KINDS))
        calibrator.update(tokens)
        found = calibrator.calibration()
        data = found.to_bytes()
        again = Calibration.from_bytes(data, "here")
        assert again.to_bytes() == data
        assert again.fidelity == found.fidelity

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "not a readable .npz"),
            (b"PK\x03\x04 nonsense", "not a readable .npz"),
            (save_npz({"cls_mean": np.ones(3)}), "not a calibration"),
            (save_npz({"cls_mean": np.ones(3), "cls_std": np.full(3, np.nan)}), "not finite vectors"),
            (save_npz({"cls_mean": np.ones((2, 2)), "cls_std": np.ones((2, 2))}), "not finite vectors"),
            (save_npz({"cls_mean": np.ones(3), "cls_std": np.ones(4)}), "of one length"),
        ],
    )
    def test_refuses_bytes_that_are_none(self, data, message):
        with pytest.raises(CacheError, match=f"somewhere.*{message}"):
            Calibration.from_bytes(data, "somewhere")

    def test_an_npz_that_unpacks_without_bound_is_refused(self):
        import io
        import zipfile

        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cls_mean.npy", bytes(50_000_000))
        with pytest.raises(CacheError, match="compressed members; refused"):
            load_npz(buffer.getvalue(), "bomb")
        with pytest.raises(CacheError, match=r"over 10 bytes|more than 10 bytes"):
            load_npz(save_npz({"a": np.zeros(100)}), "bomb", limit=10)
