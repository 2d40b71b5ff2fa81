"""Codec klt against loops, Kronecker products and all tokens at once.

Letters: B images, T tokens, D channels, N coefficients that are kept of T D.
"""

import dataclasses
import math
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from unic_cache.errors import CacheError
from unic_cache.store.calibrate import Calibration, Calibrator
from unic_cache.store.codecs.codec import Features
from unic_cache.store.codecs.fit import BandMoments, coefficient_rms, fidelity, fit_klt, with_step
from unic_cache.store.codecs.fixed import Int8
from unic_cache.store.codecs.klt import Klt
from unic_cache.store.codecs.packing import LARGEST
from unic_cache.store.coders import ZSTD_LEVEL
from unic_cache.token_kinds import TokenKind

SHARED = {2: (15, 2), 3: (5, 3), 4: (3, 5)}  # class -> base, and codes a byte
GRIDS = [(1, 1), (1, 7), (2, 3), (5, 4), (9, 6), None]


def naive_bytes(codes: list[list[int]], size: int) -> bytes:
    """One image's codes of each class to bytes, one after the other."""
    wide, single = codes[:2]
    found = [code >> 8 & 255 for code in wide] + [code & 255 for code in wide] + [code & 255 for code in single]
    for kind, (base, each) in SHARED.items():
        for start in range(0, len(codes[kind]), each):
            group = [*codes[kind][start : start + each], *[0] * each][:each]
            found.append(sum((code + base // 2) * base**place for place, code in enumerate(group)))
    return bytes(found) + bytes(size - len(found))


def plain(counts: tuple[int, ...], left_out: int = 0, seed: int = 0) -> Klt:
    """A codec of single tokens that neither rotates nor scales: its codes are the token's channels, in some order."""
    channels = max(sum(counts) + left_out, 1)
    order = np.random.default_rng(seed).permutation(channels)[: sum(counts)]
    return Klt((1, 1), 1, np.stack([np.eye(channels, dtype=np.float32)] * 2), order.astype(np.int32), counts, 1.0)


def rotations(bands: int, channels: int, seed: int = 0) -> np.ndarray:
    """(G, D, D) orthonormal float32."""
    generator = np.random.default_rng(seed)
    return np.stack([np.linalg.qr(generator.standard_normal((channels, channels)))[0] for _ in range(bands)]).astype(
        "f4"
    )


def random_codec(grid: tuple[int, int] | None, tokens: int, channels: int, step: float = 0.1, seed: int = 0) -> Klt:
    """Codes of all classes and some coefficients without one, whatever they are worth."""
    order = np.random.default_rng(seed).permutation(tokens * channels)
    ends = np.linspace(0, len(order), len(LARGEST) + 2).astype(int)
    counts = tuple(np.diff(ends)[:-1].tolist())
    rotation = rotations(1 if grid is None else 2, channels, seed)
    return Klt(grid, tokens, rotation, order[: sum(counts)].astype(np.int32), counts, step)


def tokens_in(grid: tuple[int, int] | None) -> int:
    return 7 if grid is None else math.prod(grid)


def spectrum_of(tokens_BTD: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
    """The DCT-II of each channel over the grid by its formula, as one (T, T) matrix in float64."""
    if grid is None:
        return tokens_BTD.astype(np.float64)

    def cosines(size: int) -> np.ndarray:
        rows = [[math.cos(math.pi * (place + 0.5) * u / size) for place in range(size)] for u in range(size)]
        return np.array([np.array(row) * math.sqrt((2 if u else 1) / size) for u, row in enumerate(rows)])

    return np.einsum("ut,btd->bud", np.kron(cosines(grid[0]), cosines(grid[1])), tokens_BTD.astype(np.float64))


def bands_of(grid: tuple[int, int] | None, tokens: int) -> list[list[int]]:
    """The tokens below a quarter of both of the grid's sides, and the others."""
    if grid is None:
        return [list(range(tokens))]
    low = [t for t in range(tokens) if 4 * (t // grid[1]) < grid[0] and 4 * (t % grid[1]) < grid[1]]
    return [low, [t for t in range(tokens) if t not in low]]


def field(images: int, grid: tuple[int, int], channels: int, rank: int = 4, seed: int = 0) -> torch.Tensor:
    """(B, T, D) unit variance: AR(1) over both axes of the grid in `rank` directions of the channels, and noise."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((images, *grid, rank))
    for axis in (1, 2):
        along = np.moveaxis(values, axis, 0)
        for place in range(1, len(along)):
            along[place] = 0.95 * along[place - 1] + math.sqrt(1 - 0.95**2) * along[place]
    mixing = np.random.default_rng(7).standard_normal((rank, channels))
    tokens = values.reshape(images, -1, rank) @ mixing / np.sqrt((mixing**2).sum(axis=0))
    return torch.from_numpy(tokens + 0.05 * generator.standard_normal(tokens.shape)).float()


def calibrated(tokens_BTD: torch.Tensor, features: Features, batch: int = 16) -> Calibration:
    calibrator = Calibrator(features)
    for part in torch.split(tokens_BTD, batch):
        calibrator.update({"patch": part})
    return calibrator.calibration()


class TestBytes:
    @given(st.tuples(*[st.integers(0, 13)] * 5), st.integers(0, 5), st.integers(0, 3), st.integers(0, 2**32))
    @settings(deadline=None, max_examples=80)
    def test_are_those_of_a_loop_over_the_classes(self, counts, left_out, images, seed):
        generator = np.random.default_rng(seed)
        codec = plain(counts, left_out, seed)
        codes = [
            generator.integers(-top, top, (images, count), endpoint=True)
            for top, count in zip(LARGEST, counts, strict=True)
        ]
        tokens = np.zeros((images, 1, codec.channels), np.float32)
        tokens[:, 0, codec.order] = np.concatenate(codes, axis=1)
        parts = codec.encode("patch", torch.from_numpy(tokens))
        assert parts.arrays["patch"].shape == (images, codec.packing.row_bytes)
        for image, found in enumerate(parts.arrays["patch"]):
            each = [kind[image].tolist() for kind in codes]
            assert found.numpy().tobytes() == naive_bytes(each, codec.packing.row_bytes)
        assert torch.equal(codec.decode("patch", parts.arrays), torch.from_numpy(tokens))
        assert not parts.clipped_B.any()

    @pytest.mark.parametrize("kind", range(5))
    def test_hold_every_code_of_each_class(self, kind):
        """All bytes of the classes that share one; all codes of the others, an image each."""
        base, each = SHARED.get(kind, (2 * LARGEST[kind] + 1, 1))
        codes = np.stack(np.meshgrid(*[np.arange(base) - base // 2] * each), axis=-1).reshape(-1, each)
        codec = plain(tuple(each if kind == number else 0 for number in range(5)))
        tokens = torch.zeros(len(codes), 1, each)
        tokens[:, 0, codec.order] = torch.from_numpy(codes).float()
        parts = codec.encode("patch", tokens)
        assert len(np.unique(parts.arrays["patch"].numpy(), axis=0)) == len(codes)
        assert torch.equal(codec.decode("patch", parts.arrays), tokens)

    @pytest.mark.parametrize(
        ("counts", "size"), [((0, 0, 0, 0, 0), 256), ((100, 50, 4, 3, 2), 256), ((101, 50, 5, 3, 2), 512)]
    )
    def test_are_whole_tiles(self, counts, size):
        assert plain(counts).packing.row_bytes == size
        assert plain(counts).arrays("patch", (1, plain(counts).channels))[0].row == (size,)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
class TestTransform:
    def test_is_a_cosine_transform_then_a_rotation_of_each_band(self, grid):
        tokens = tokens_in(grid)
        codec = random_codec(grid, tokens, 5)
        values = np.random.default_rng(2).standard_normal((3, tokens, 5)).astype(np.float32)
        spectrum = spectrum_of(values, grid)
        bands = zip(bands_of(grid, tokens), codec.rotation, strict=True)
        expected = [spectrum[:, t] @ axes for band, axes in bands for t in band]
        assert np.allclose(codec.coefficients(torch.from_numpy(values)), np.stack(expected, axis=1), atol=1e-5)

    def test_is_orthonormal_and_undone_by_its_inverse(self, grid):
        tokens = tokens_in(grid)
        codec = random_codec(grid, tokens, 5)
        units = torch.eye(tokens * 5).reshape(-1, tokens, 5)
        matrix = codec.coefficients(units).flatten(1).double()
        assert (matrix @ matrix.T - torch.eye(tokens * 5)).abs().max() < 1e-5
        assert (codec.tokens_of(codec.coefficients(units)) - units).abs().max() < 1e-5

    def test_encoding_is_the_formula_clamped_and_counted(self, grid):
        tokens = tokens_in(grid)
        codec = random_codec(grid, tokens, 5)
        values = torch.randn(9, tokens, 5, generator=torch.Generator().manual_seed(3)) * 10 ** torch.arange(
            -3, 6
        ).reshape(-1, 1, 1)
        steps = codec.coefficients(values).flatten(1).numpy() / np.float32(codec.step)
        parts = codec.encode("patch", values)
        kinds = np.repeat(range(len(LARGEST)), codec.counts).tolist()
        for image in range(len(values)):
            changed, codes = 0, [[] for _ in LARGEST]
            for place, kind in zip(codec.order, kinds, strict=True):
                exact = float(steps[image, place])
                code = math.copysign(math.floor(np.float32(abs(exact)) + np.float32(0.4)), exact)
                codes[kind].append(int(max(-LARGEST[kind], min(LARGEST[kind], code))))
                changed += codes[kind][-1] != code
            for place in set(range(tokens * 5)) - set(codec.order.tolist()):
                changed += abs(float(steps[image, place])) >= np.float32(0.6)
            assert parts.arrays["patch"][image].numpy().tobytes() == naive_bytes(codes, codec.packing.row_bytes)
            assert parts.clipped_B[image] == changed
        assert parts.clipped_B[0] == 0
        assert parts.clipped_B[-1] > tokens

    def test_what_is_not_clipped_errs_by_the_dead_zone_at_most(self, grid):
        tokens = tokens_in(grid)
        order = np.random.default_rng(1).permutation(tokens * 5).astype(np.int32)
        codec = Klt(grid, tokens, rotations(1 if grid is None else 2, 5), order, (len(order), 0, 0, 0, 0), 0.1)
        values = 3 * torch.randn(20, tokens, 5, generator=torch.Generator().manual_seed(4))
        parts = codec.encode("patch", values)
        error = codec.coefficients(codec.decode("patch", parts.arrays)) - codec.coefficients(values)
        assert not parts.clipped_B.any()
        assert 0.05 < error.abs().max() <= 0.06 + 1e-4


class TestFit:
    @pytest.fixture
    def tokens(self):
        return field(240, (6, 5), 12)

    @pytest.mark.parametrize("quality", [0.9, 0.96, 0.99])
    def test_reaches_the_quality_on_held_out_tokens_with_the_largest_step(self, tokens, quality):
        fit, held_out = tokens[:120], tokens[120:]
        codec = fit_klt(rotations(2, 12), fit, held_out, (6, 5), quality)
        rms = coefficient_rms(codec, (codec.coefficients(fit), codec.coefficients(held_out)))

        def reached(step: float) -> float:
            """A loop over tokens."""
            tried = with_step(codec, rms, step)
            decoded = tried.decode("patch", tried.encode("patch", held_out).arrays).double().flatten(0, 1)
            pairs = zip(decoded, held_out.double().flatten(0, 1), strict=True)
            return float(np.mean([float(a @ b / max(a.norm() * b.norm(), 1e-30)) for a, b in pairs]))

        assert quality <= reached(codec.step) < quality + 0.01
        assert reached(1.01 * codec.step) < quality
        assert np.array_equal(with_step(codec, rms, codec.step).order, codec.order)

    @pytest.mark.parametrize("step", [0.004, 0.3, 2.0])
    def test_the_fidelity_of_a_step_is_that_of_encoding_and_decoding(self, tokens, step):
        """To the bit, with codes that are left out and codes beyond their class."""
        codec = fit_klt(rotations(2, 12), tokens[:120], tokens[120:], (6, 5), 0.99)
        spread = codec.coefficients(tokens[:120]).double().square().mean(dim=0).sqrt().flatten().numpy()
        tried, wild = with_step(codec, spread, step), 5 * tokens[120:152]
        encoded = tried.encode("patch", wild)
        decoded = tried.decode("patch", encoded.arrays)
        cosine = torch.cosine_similarity(decoded.double(), wild.double(), dim=-1).sum().item() / (32 * 30)
        assert encoded.clipped_B.any()
        assert fidelity(tried, [tried.coefficients(wild)], wild) == cosine

    def test_what_it_says_of_the_held_out_images_is_what_they_lose(self, tokens):
        found = calibrated(tokens, Features("klt", {"patch": TokenKind(12, (6, 5))}, quality=0.97))
        held_out = found.standardize({"patch": tokens[4::5]})["patch"]
        codec = found.codec(Features("klt", {"patch": TokenKind(12, (6, 5))}))
        decoded = codec.decode(codec.encode({"patch": held_out}).arrays)["patch"]
        cosine = torch.cosine_similarity(decoded, held_out, dim=-1).mean()
        assert found.fidelity["patch"] == pytest.approx(float(cosine), abs=1e-6)
        assert 0.97 <= found.fidelity["patch"] < 0.975

    def test_classes_follow_the_rms_of_their_coefficients(self, tokens):
        codec = fit_klt(rotations(2, 12), tokens[:120], tokens[120:], (6, 5), 0.99)
        rms = codec.coefficients(tokens).double().square().mean(dim=0).sqrt().flatten().numpy() / codec.step
        ends = np.cumsum((0, *codec.counts))
        each = [rms[codec.order[start:end]].mean() for start, end in pairwise(ends) if end > start]
        assert each == sorted(each, reverse=True)
        assert len(each) >= 3

    def test_twice_gives_equal_bytes(self, tokens):
        features = Features("klt", {"patch": TokenKind(12, (6, 5))})
        assert calibrated(tokens, features).to_bytes() == calibrated(tokens.clone(), features).to_bytes()

    @pytest.mark.parametrize(
        ("images", "grid", "channels", "batch"),
        [
            (10, (3, 3), 6, 16),
            (12, (3, 3), 6, 1),
            (5, (2, 2), 4, 16),  # one is held out
            (50, (1, 1), 7, 16),
            (50, (2, 3), 5, 16),
            (50, (1, 6), 5, 16),
            (10, (2, 2), 40, 16),  # more channels than tokens to fit them to
        ],
    )
    def test_of_few_images_and_odd_shapes_reaches_the_quality(self, images, grid, channels, batch):
        features = Features("klt", {"patch": TokenKind(channels, grid)}, quality=0.95)
        tokens = 3 * torch.randn(images, math.prod(grid), channels, generator=torch.Generator().manual_seed(5)) + 2
        found = Calibration.from_bytes(calibrated(tokens, features, batch).to_bytes(), "here")
        assert 0.95 <= found.fidelity["patch"] <= 1
        codec = found.codec(features)
        standardized = found.standardize({"patch": tokens})
        decoded = codec.decode(codec.encode(standardized).arrays)["patch"]
        assert decoded.shape == tokens.shape
        assert torch.cosine_similarity(decoded, standardized["patch"], dim=-1).mean() > 0.9

    @pytest.mark.parametrize("dead", [1, 4, 6])
    def test_channels_at_rest_are_decoded_as_such(self, dead):
        """One, most and all of six channels that never move."""
        tokens = torch.randn(50, 9, 6, generator=torch.Generator().manual_seed(6))
        tokens[..., :dead] = 0.3
        features = Features("klt", {"patch": TokenKind(6, (3, 3))})
        found = Calibration.from_bytes(calibrated(tokens, features).to_bytes(), "here")
        codec = found.codec(features)
        decoded = codec.decode(codec.encode(found.standardize({"patch": tokens})).arrays)
        back = found.destandardize(decoded)["patch"]
        assert (back[..., :dead] - 0.3).abs().max() < 1e-2
        assert (back - tokens).abs().mean() < 0.2

    def test_of_under_five_images_is_refused(self):
        with pytest.raises(CacheError, match="4 views are too few for a calibration: at least 5 are needed; extract"):
            calibrated(torch.randn(4, 9, 6), Features("klt", {"patch": TokenKind(6, (3, 3))}))

    def test_leaves_no_tables_behind(self, tokens):
        codec = random_codec((6, 5), 30, 12)
        codec.encode("patch", tokens[:1])
        gone = weakref.ref(codec)
        del codec
        assert gone() is None


class TestAxes:
    @pytest.mark.parametrize(
        ("grid", "tokens", "every"),
        [
            ((4, 5), 20, (1, 1)),
            ((12, 12), 144, (1, 2)),
            ((46, 47), 46 * 47, (2, 31)),
            (None, 6, (1,)),
            (None, 130, (2,)),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("offset", [0.0, 1000.0])
    def test_are_those_of_all_standardized_spectra_at_once(self, grid, tokens, every, offset):
        """Whatever the mean and std are: the sample's own, or not."""
        generator = np.random.default_rng(8)
        mixing = generator.standard_normal((4, 4))
        values = (generator.standard_normal((11, tokens, 4)) @ mixing + generator.standard_normal(4) + offset).astype(
            "f4"
        )
        mean, std = offset + generator.standard_normal(4), generator.uniform(0.5, 2, 4)
        moments = BandMoments(grid, tokens)
        for part in torch.split(torch.from_numpy(values), 3):
            moments.update(part)
        spectrum = spectrum_of((values.astype(np.float64) - mean) / std, grid)
        for axes, band, step in zip(moments.axes(mean, std), bands_of(grid, tokens), every, strict=True):
            flat = spectrum[:, band[::step]].reshape(-1, 4)
            rotated = axes.T @ (flat.T @ flat) @ axes
            assert np.allclose(axes.T @ axes, np.eye(4), atol=1e-6)
            assert np.abs(rotated - np.diag(np.diag(rotated))).max() < 1e-5 * np.trace(rotated)
            assert np.diag(rotated).tolist() == sorted(np.diag(rotated), reverse=True)
            assert (np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0) > 0).all()


class TestSize:
    def packed(self, codec: Klt, tokens_BTD: torch.Tensor) -> float:
        """Bytes of an image in compressed chunks."""
        (array,) = codec.arrays("patch", tuple(tokens_BTD.shape[1:]))
        chunks = array.to_disk(codec.encode("patch", tokens_BTD).arrays["patch"].numpy())
        return sum(len(Zstd(level=ZSTD_LEVEL).encode(chunk.tobytes())) for chunk in chunks) / len(tokens_BTD)

    def test_a_correlated_field_is_far_smaller_for_being_decorrelated(self):
        """The same tokens at the same cosine, without the transform over the grid, the rotation, or both."""
        grid, channels = (8, 8), 24
        fit, held_out, tokens = (
            field(80, grid, channels),
            field(20, grid, channels, seed=1),
            field(64, grid, channels, seed=2),
        )
        moments = {known: BandMoments(known, 64) for known in (grid, None)}
        sizes, cosines = {}, {}
        for known, found in moments.items():
            found.update(fit)
            axes = found.axes(np.zeros(channels), np.ones(channels))
            for name, rotation in (
                ("rotated", axes),
                ("as they are", np.zeros_like(axes) + np.eye(channels, dtype="f4")),
            ):
                codec = fit_klt(rotation, fit, held_out, known, 0.99)
                sizes["DCT" if known else "", name] = self.packed(codec, tokens)
                decoded = codec.decode("patch", codec.encode("patch", tokens).arrays)
                cosines[known, name] = float(torch.cosine_similarity(decoded, tokens, dim=-1).mean())
        assert max(cosines.values()) - min(cosines.values()) < 0.001
        klt = sizes["DCT", "rotated"]
        int8 = sum(array.row_bytes for array in Int8().arrays("patch", (64, channels)))
        print(f"{ {' '.join(name): round(size) for name, size in sizes.items()} } bytes, int8 {int8}")
        assert klt < 0.05 * int8
        assert klt < 0.6 * min(size for name, size in sizes.items() if name != ("DCT", "rotated"))


class TestKept:
    @pytest.fixture
    def arrays(self):
        return random_codec((2, 3), 6, 5).to_arrays()

    def test_comes_back_from_its_arrays(self, arrays):
        codec = random_codec((2, 3), 6, 5)
        again = Klt.from_arrays(arrays, (2, 3), 6)
        values = torch.randn(4, 6, 5)
        assert torch.equal(again.encode("patch", values).arrays["patch"], codec.encode("patch", values).arrays["patch"])
        assert {name: x.tobytes() for name, x in again.to_arrays().items()} == {
            n: x.tobytes() for n, x in arrays.items()
        }

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("klt_rotation", None),
            ("klt_step", None),
            ("klt_rotation", np.zeros((5, 5), np.float32)),
            ("klt_rotation", np.zeros((2, 5, 5))),
            ("klt_order", np.zeros((5, 5), np.int32)),
            ("klt_order", np.array(25, np.int32)),
            ("klt_order", np.arange(25.0)),
            ("klt_order", np.arange(25, dtype=np.int64) + 2**32),
            ("klt_counts", np.array(25)),
            ("klt_counts", np.array(["5"] * 5)),
            ("klt_counts", np.array([5] * 5, np.uint64)),
            ("klt_step", np.array([1.0])),
            ("klt_step", np.array(1)),
        ],
    )
    def test_arrays_that_are_none_are_refused(self, arrays, name, value):
        hostile = {other: found for other, found in arrays.items() if other != name}
        with pytest.raises(CacheError, match=rf"holds no codec klt \({name} is missing, or not of \w+ with \d axes\)"):
            Klt.from_arrays(hostile if value is None else {**hostile, name: value}, (2, 3), 6)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("klt_rotation", lambda x: x[:1]),
            ("klt_rotation", lambda x: x[..., :4]),
            ("klt_rotation", lambda x: x * np.float32(np.nan)),
            ("klt_order", lambda x: x[:-1]),
            ("klt_order", lambda x: np.where(x == x[0], x[1], x)),
            ("klt_order", lambda x: np.where(x == x[0], np.int32(-1), x)),
            ("klt_order", lambda x: np.where(x == x[0], np.int32(30), x)),
            ("klt_counts", lambda x: x[:4]),
            ("klt_counts", lambda x: np.append(x, 0)),
            ("klt_counts", lambda x: x + np.array([-100, 100, 0, 0, 0])),
            ("klt_counts", lambda x: x + np.array([1, 0, 0, 0, 0])),
            ("klt_counts", lambda x: x * 2**61),
            ("klt_step", lambda x: np.array(np.nan)),
            ("klt_step", lambda x: np.array(np.inf)),
            ("klt_step", lambda x: np.array(0.0)),
            ("klt_step", lambda x: -x),
        ],
    )
    def test_arrays_that_do_not_fit_are_refused(self, arrays, name, change):
        with pytest.raises(CacheError, match="holds a codec klt that does not fit its tokens"):
            Klt.from_arrays({**arrays, name: change(arrays[name])}, (2, 3), 6)

    @pytest.mark.parametrize("grid", [(2, 2), (1, 1), None])
    def test_a_codec_of_more_tokens_or_of_a_grid_is_refused_elsewhere(self, arrays, grid):
        with pytest.raises(CacheError, match="holds a codec klt that does not fit its tokens"):
            Klt.from_arrays(arrays, grid, tokens_in(grid) if grid else 6)

    @pytest.mark.parametrize(("tokens", "channels"), [(6, 4), (6, 6)])
    def test_a_calibration_of_another_teacher_is_refused(self, arrays, tokens, channels):
        calibration = Calibration({"patch": np.zeros(5)}, {"patch": np.ones(5)}, {}, klt=arrays)
        message = f"of 6 tokens of 5 channels, but the spec says {tokens} of {channels}; they belong to two caches"
        with pytest.raises(CacheError, match=message):
            calibration.codec(Features("klt", {"patch": TokenKind(channels, (2, 3))}))

    def test_a_calibration_of_a_larger_grid_is_refused(self):
        large = dataclasses.replace(random_codec((2, 3), 6, 5), order=np.zeros(0, np.int32), counts=(0,) * 5)
        codec = Klt.from_arrays(large.to_arrays(), (2, 3), 6)
        with pytest.raises(CacheError, match="of 6 tokens of 5 channels, but the spec says 4 of 5; they belong to two"):
            codec.arrays("patch", (4, 5))
