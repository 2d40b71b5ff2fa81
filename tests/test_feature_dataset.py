"""FeatureDataset against the tars, stock zarr and numpy, one image after the other.

Letters: B images.
"""

import itertools
import json
import pickle
import shutil
import zlib
from collections import Counter
from functools import cache as cache_of_results
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from crc32c import crc32c
from torch.utils.data import DataLoader

import unic_cache
from pipelines import extract
from tests.conftest import CNN, VIT, picture, png, views_of, write_tar
from tests.fake_device import FakeDevice
from tests.test_seals import add_seals, record_of, spoil
from tests.test_skip_broken import flip_row
from unic_cache import FeatureDataset
from unic_cache.errors import BrokenError, CacheError, ConfigError, ShardError, UnicCacheError
from unic_cache.inputs import network_input
from unic_cache.store import seal
from unic_cache.store.sampling import random_positions
from unic_cache.stream import dataset as datasets
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Batch
from unic_cache.stream.given_batch import GivenBatch, prepared
from unic_cache.stream.given_tokens import GivenTokens
from unic_cache.stream.held_out import hold_out
from unic_cache.stream.order import Order

ROWS = (37, 40, 5)
WHERE = {  # crc32 of a key -> (tar, row, number of the picture)
    zlib.crc32(f"image{number:05d}".encode()): (tar, row, number)
    for number, (tar, row) in enumerate((tar, row) for tar, rows in enumerate(ROWS) for row in range(rows))
}
WIDE = "timm:test_vit@64"  # 4 x 4 tokens
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture
def dataset(cache_folder, shards):
    """A dataset of the shared cache; keywords change arguments."""

    def make(**changes) -> FeatureDataset:
        given = {"batch_size": 16, "shards": shards.pattern, "threads": 2, **changes}
        return FeatureDataset(given.pop("cache", cache_folder), **given)

    return make


@pytest.fixture(scope="module")
def kept(tmp_path_factory, settings, weights) -> Path:
    """A cache of one teacher in klt that keeps its views, read-only."""
    folder = tmp_path_factory.mktemp("kept") / "cache"
    chosen = {"teachers": (VIT,), "weights": ((VIT, str(weights[VIT])),)}
    extract.run(settings(folder, codec="klt", keep_views=True, **chosen))
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory, settings, weights) -> Path:
    """Of 16 tokens 4 are stored; tars a and b have the same keys, of which a's odd ones and b's all have no label."""
    folder = tmp_path_factory.mktemp("odd")
    samples = [(f"image{n:05d}", png(picture(n)), None if n % 2 else n % 3) for n in range(12)]
    samples[7] = ("image00007", b"no image", None)
    write_tar(folder / "a.tar", samples)
    write_tar(folder / "b.tar", [(f"image{n:05d}", png(picture(20 + n)), None) for n in range(12)])
    chosen = {"teachers": (WIDE,), "weights": ((WIDE, str(weights[VIT])),), "shards": str(folder / "*.tar")}
    extract.run(settings(folder / "cache", views=1, tokens=4, **chosen))
    return folder


@cache_of_results
def stored(cache: Path, teacher: str, view: str) -> dict[str, np.ndarray]:
    """All float16 tokens of a view, (tars, rows, ...), by stock zarr."""
    group = zarr.open_group(cache / teacher.replace(":", ".") / "features.zarr", mode="r")[f"000000/{view}"]
    return {kind: np.asarray(group[kind][:], np.float32) for kind in ("cls", "patch")}


def by_hand(cache: Path, teacher: str, tar: int, row: int, view: str) -> dict[str, np.ndarray]:
    """The tokens of one image."""
    return {kind: values[tar, row] for kind, values in stored(cache, teacher, view).items()}


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    return torch.equal(one, other)


def keys_of(batches) -> list[int]:
    return [key for batch in batches for key in batch["key"].tolist()]


class TestBatches:
    def test_are_what_the_tars_and_stock_zarr_hold(self, dataset, cache_folder, shards):
        slow = {(tar, view): views_of(shards, tar, view) for tar in range(3) for view in (0, 1)}
        found = dataset()
        for epoch, view in enumerate((0, 1, 0)):
            batches = list(found)  # kept while the stream goes on
            assert Counter(keys_of(batches)) == Counter(WHERE.keys()), epoch
            for batch in batches[:: 1 if epoch < 2 else 5]:
                assert set(batch) == {"image", "label", "key", "view", VIT, CNN}
                assert batch["view"].tolist() == [view] * len(batch["key"])
                for place, key in enumerate(batch["key"].tolist()):
                    tar, row, number = WHERE[key]
                    assert np.array_equal(batch["image"][place].numpy(), slow[tar, view][row])
                    assert batch["label"][place] == number % 3
                    for name in (VIT, CNN):
                        for kind, values in by_hand(cache_folder, name, tar, row, f"unic-32-0-00{view}").items():
                            assert np.array_equal(batch[name][kind][place].numpy(), values)

    def test_have_the_shapes_and_types_that_help_shows(self, dataset):
        batch = next(iter(dataset()))
        types = {name: (tuple(batch[name].shape), batch[name].dtype) for name in ("image", "label", "key", "view")}
        assert types.pop("image") == ((16, 32, 32, 3), torch.uint8)
        assert set(types.values()) == {((16,), torch.int64)}
        assert {kind: (x.shape, x.dtype) for kind, x in batch[VIT].items()} == {
            "cls": ((16, 64), torch.float32),
            "patch": ((16, 4, 64), torch.float32),
        }

    def test_come_in_distills_own_order(self, dataset):
        found = dataset(seed=5, batch_size=41)
        order = Order(found.chosen.rows, (0, 1), seed=5)
        keys = keys_of(itertools.chain(found, found))
        places = [(item.shard, item.row) for item in order.samples(0, 164)]
        assert [WHERE[key][:2] for key in keys] == places

    def test_can_keep_the_order_of_the_cache(self, dataset):
        found = dataset(shuffle=False, views=1)
        assert [WHERE[key][:2] for key in keys_of(found)] == [(t, r) for t, n in enumerate(ROWS) for r in range(n)]
        assert keys_of(found) == keys_of(found)

    def test_are_prepared_as_every_network_of_ours_gets_them(self, dataset):
        plain, ready = (next(iter(dataset(**more))) for more in ({}, {**IMAGENET, "img_size": 48}))
        assert torch.equal(ready["image"], network_input(plain["image"], 48, *IMAGENET.values()))
        same = next(iter(dataset(**IMAGENET)))["image"]
        by_numpy = (plain["image"].numpy() / 255 - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])
        assert np.allclose(same.numpy(), by_numpy.transpose(0, 3, 1, 2), atol=1e-5)
        arrays = {name: np.array(colour) for name, colour in IMAGENET.items()}
        assert torch.equal(next(iter(dataset(**arrays)))["image"], same)

    def test_share_their_memory_with_numpy_and_dlpack(self, dataset):
        batch, arrays = next(iter(dataset())), next(iter(dataset(numpy=True)))
        assert isinstance(arrays["image"], np.ndarray)
        assert np.array_equal(arrays[VIT]["patch"], batch[VIT]["patch"].numpy())
        for tensor in (batch["image"], batch[VIT]["patch"], batch["key"]):
            assert np.shares_memory(np.from_dlpack(tensor), tensor.numpy())
        assert torch.from_dlpack(arrays[VIT]["patch"]).data_ptr() == arrays[VIT]["patch"].ctypes.data

    @pytest.mark.parametrize("images", [True, False])
    def test_of_a_tar_that_two_patterns_name_do_not_count_twice(self, dataset, shards, images):
        with pytest.raises(ShardError, match="two shards are called '000001'"):
            dataset(shards=f"{shards.pattern}::{shards.folder}/000001.tar", images=images)

    def test_hold_only_the_teachers_and_kinds_that_were_asked_for(self, dataset):
        batch = next(iter(dataset(teachers=CNN, kinds=["cls"])))
        assert set(batch) == {"image", "label", "key", "view", CNN}
        assert set(batch[CNN]) == {"cls"}

    def test_show_center_views_when_asked(self, dataset, cache_folder):
        (batch,) = dataset(recipe="center", shuffle=False, batch_size=82)
        assert np.array_equal(batch[VIT]["cls"][3].numpy(), by_hand(cache_folder, VIT, 0, 3, "center-32-0-000")["cls"])


class TestTokens:
    def test_in_the_teachers_own_scale_are_the_stored_ones_times_std_plus_mean(self, dataset, cache_folder):
        kept_as, own = (next(iter(dataset(standardize=name))) for name in ("channel", "none"))
        with np.load(cache_folder / VIT.replace(":", ".") / "calibration.npz") as tables:
            for kind in ("cls", "patch"):
                expected = kept_as[VIT][kind].numpy() * tables[f"{kind}_std"] + tables[f"{kind}_mean"]
                assert np.allclose(own[VIT][kind].numpy(), expected, atol=1e-5)

    def test_by_phi_s_keep_distances_up_to_one_factor(self, dataset):
        own, phi = (next(iter(dataset(standardize=name)))[VIT]["cls"].double() for name in ("none", "phi-s"))
        ratio = torch.cdist(phi, phi)[0, 1:] / torch.cdist(own, own)[0, 1:]
        assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-4)

    def test_are_sampled_at_positions_that_teachers_of_one_grid_share(self, dataset):
        whole, some = (next(iter(dataset(tokens=n))) for n in (None, 2))
        expected = random_positions(0, [(key, 0) for key in whole["key"].tolist()], (2, 2), 2)
        assert np.array_equal(some[VIT]["positions"].numpy(), expected)
        for name, places in ((VIT, expected), (CNN, None)):
            if places is not None:
                full = whole[name]["patch"].numpy()
                assert np.array_equal(some[name]["patch"].numpy(), np.take_along_axis(full, places[..., None], 1))
            assert torch.equal(some[name]["cls"], whole[name]["cls"])

    def test_that_are_stored_in_part_come_with_their_positions(self, odd, dataset):
        cache = unic_cache.open_cache(odd / "cache")
        teacher, unit = cache.teachers[WIDE], cache.unit(0, 1, "unic-32-0-000")
        kept, places = (teacher.features(teacher.record(unit), range(12)), cache.positions(teacher, unit, range(12)))
        some, fewer = (
            next(iter(dataset(cache=cache, images=False, shards="b", tokens=n, shuffle=False, batch_size=12)))[WIDE]
            for n in (None, 1)
        )
        assert np.array_equal(some["positions"].numpy(), places)
        assert torch.equal(some["patch"], kept["patch"])
        assert fewer["positions"].shape == (12, 1)
        at = (torch.from_numpy(places) == fewer["positions"]).nonzero()  # each is one of the stored
        assert at[:, 0].tolist() == list(range(12))
        assert torch.equal(fewer["patch"][:, 0], kept["patch"][at[:, 0], at[:, 1]])
        found = cache.features(WIDE, "image00002", shard="b")
        assert np.array_equal(found["positions"].numpy(), places[2])


class TestEpochs:
    @pytest.fixture
    def dataset(self, dataset):
        return partial(dataset, images=False)

    def test_go_on_by_themselves_or_as_set(self, dataset):
        every = [list(found) for found in itertools.repeat(dataset(), 3)]
        found = dataset()
        found.set_epoch(2)
        assert all(map(equal, found, every[2]))
        found.set_epoch(1)
        assert all(map(equal, found, every[1]))
        assert all(map(equal, found, every[2]))
        assert keys_of(every[0]) != keys_of(every[2])

    def test_that_are_left_early_are_followed_by_the_next(self, dataset):
        found, whole = dataset(), dataset()
        next(iter(found))
        list(whole)
        assert all(map(equal, found, whole))

    def test_do_not_mix_in_two_loops_at_once(self, dataset):
        found, one, other = dataset(), dataset(), dataset()
        other.set_epoch(1)
        pairs = list(zip(found, found, strict=True))
        assert len(pairs) == len(found) == 6
        assert all(equal(a, b) and equal(c, d) for (a, c), b, d in zip(pairs, one, other, strict=True))

    @pytest.mark.parametrize("world", [2, 3])
    def test_are_divided_over_ranks_without_loss_or_repetition(self, dataset, world):
        ranks = [list(dataset(rank=rank, world=world, batch_size=8)) for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1
        assert Counter(keys_of(itertools.chain(*ranks))) == Counter(WHERE.keys())
        whole = list(dataset(batch_size=8 * world))
        first = [key for batches in ranks for key in batches[0]["key"].tolist()]
        assert first == whole[0]["key"].tolist()

    def test_leave_out_the_rest_with_drop_last(self, dataset):
        batches = list(dataset(drop_last=True))
        assert [len(batch["key"]) for batch in batches] == [16] * 5


class TestResume:
    @pytest.fixture
    def dataset(self, dataset):
        return partial(dataset, images=False)

    @pytest.mark.parametrize("done", [0, 2, 6, 9])
    def test_goes_on_at_the_exact_batch(self, dataset, done):
        whole = dataset()
        expected = list(itertools.chain(whole, whole, whole))
        stopped = dataset()
        stream = itertools.chain(stopped, stopped)
        before = [next(stream) for _ in range(done)]
        state = pickle.loads(pickle.dumps(stopped.state_dict()))
        found = dataset()
        found.load_state_dict(state)
        assert found.state_dict() == state
        found.set_epoch(done // 6)  # as frameworks do: no other epoch, so the place is kept
        after = list(itertools.chain(found, found))
        assert all(map(equal, before + after, expected))
        assert len(before + after) == 6 * (done // 6 + 2)

    @pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.15
    def test_by_torchdata_goes_on_at_the_exact_batch(self, dataset):
        loaders = pytest.importorskip("torchdata.stateful_dataloader")
        expected = list(itertools.chain.from_iterable(itertools.repeat(dataset(), 2)))
        loader = loaders.StatefulDataLoader(dataset(), batch_size=None)
        stream = iter(loader)
        before = [next(stream) for _ in range(4)]
        state = loader.state_dict()
        again = loaders.StatefulDataLoader(dataset(), batch_size=None)
        again.load_state_dict(state)
        after = list(again)
        assert all(map(equal, before + after, expected[:6]))
        assert len(before + after) == 6
        assert all(map(equal, again, expected[6:]))

    @pytest.mark.parametrize(
        "changes", [{"batch_size": 8}, {"seed": 1}, {"world": 2, "rank": 0}, {"views": 1}, {"teachers": VIT}]
    )
    def test_refuses_a_state_of_other_batches(self, dataset, changes):
        with pytest.raises(ConfigError, match=r"cannot resume: the state has .*, but this dataset has"):
            dataset(**changes).load_state_dict(dataset().state_dict())

    @pytest.mark.parametrize("how", [{}, {"shards": "00000[12]"}, {"skip_broken": True}])
    def test_goes_on_after_its_records_were_sealed_and_after_the_seals_are_gone(
        self, dataset, cache_folder, tmp_path, monkeypatch, how
    ):
        monkeypatch.setattr(seal, "RUN", 2)
        plain, sealed = (shutil.copytree(cache_folder, tmp_path / name) for name in ("plain", "sealed"))
        assert add_seals(sealed)
        for saved, loaded in ((plain, sealed), (sealed, plain)):
            before, found = (dataset(cache=folder, **how) for folder in (saved, loaded))
            next(iter(before))
            found.load_state_dict(before.state_dict())
            assert found.state_dict() == before.state_dict()
        spoil(record_of(plain, VIT, 1, 1), clipped=7)
        with pytest.raises(ConfigError, match="the state has records"):
            dataset(cache=plain, **how).load_state_dict(dataset(cache=sealed, **how).state_dict())

    @pytest.mark.parametrize("sealed", [False, True])
    def test_goes_on_at_a_state_of_an_earlier_release(self, dataset, cache_folder, tmp_path, monkeypatch, sealed):
        monkeypatch.setattr(seal, "RUN", 2)
        folder = shutil.copytree(cache_folder, tmp_path / "cache")
        if sealed:
            add_seals(folder)
        found = dataset(cache=folder)
        names = json.dumps(dict(found.chosen.records), sort_keys=True).encode()
        assert any("/seals/" in name for name in found.chosen.records) == sealed
        found.load_state_dict({**found.state_dict(), "batch": 3, "records": crc32c(names)})
        assert found.state_dict()["batch"] == 3

    @pytest.mark.parametrize("broken", [{"batch": 6}, {"batch": -1}, {"epoch": "1"}, {"batch": None}])
    def test_refuses_a_broken_state(self, dataset, broken):
        found = dataset()
        with pytest.raises(ConfigError):
            found.load_state_dict({**found.state_dict(), **broken})


class TestLoaders:
    def test_give_the_same_batches(self, dataset):
        loader = DataLoader(dataset(), batch_size=None)
        assert len(loader) == 6
        assert all(map(equal, loader, dataset()))

    def test_with_workers_are_refused_and_told_why(self, dataset, monkeypatch):
        found = dataset(images=False)
        with pytest.raises(ConfigError, match="num_workers=0"):
            pickle.dumps(found)  # as a worker that is not forked gets it
        monkeypatch.setattr(datasets, "get_worker_info", lambda: "a worker")
        with pytest.raises(ConfigError, match=r"every batch. Use .*batch_size=None, num_workers=0"):
            iter(found)

    @pytest.mark.slow
    def test_with_real_workers_are_refused_too(self, dataset):
        with pytest.raises(UnicCacheError, match=r"(?s)workers? .*every batch.*batch_size=None, num_workers=0"):
            next(iter(DataLoader(dataset(), batch_size=None, num_workers=1)))


class TestTars:
    def test_are_not_needed_for_features_alone(self, dataset, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        found = dataset(shards=None, images=False)
        batch = next(iter(found))
        assert "image" not in batch
        assert equal(batch[VIT], next(iter(dataset(images=False)))[VIT])

    def test_are_needed_for_images_that_are_not_kept(self, dataset, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ShardError, match=r"does not keep these views' pixels.*with shards, or .* images=False"):
            dataset(shards=None)
        with pytest.raises(ShardError, match="does not keep"):
            dataset(shards="000001")

    def test_are_not_needed_for_images_that_are_kept(self, dataset, kept, shards, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        batches = list(dataset(cache=kept, shards=None))
        for batch, other in zip(batches, dataset(), strict=True):
            assert torch.equal(batch["image"], other["image"])
            assert torch.cosine_similarity(batch[VIT]["patch"], other[VIT]["patch"], dim=-1).mean() > 0.95

    def test_can_be_chosen_by_file_or_by_name(self, dataset, kept, shards):
        by_name = dataset(cache=kept, shards="{000000,*2}", shuffle=False)
        assert {WHERE[key][0] for key in keys_of(by_name)} == {0, 2}
        by_file = dataset(cache=kept, shards=shards.folder / "000001.tar", shuffle=False)
        assert {WHERE[key][0] for key in keys_of(by_file)} == {1}
        with pytest.raises(CacheError, match="shards '7' is neither a file nor a tar of the cache, which has 000000"):
            dataset(cache=kept, shards="7")
        with pytest.raises(ShardError, match="no shard at"):
            dataset(cache=kept, shards="elsewhere/000001.tar")

    def test_of_other_pictures_are_refused(self, dataset, tmp_path):
        samples = [(f"image{n:05d}", png(picture(n + 1)), n % 3) for n in range(37)]
        write_tar(tmp_path / "000000.tar", samples)
        with pytest.raises(CacheError, match="another picture"):
            list(dataset(shards=tmp_path / "*.tar"))

    def test_that_are_held_out_are_left_out_unless_asked_for(self, dataset, kept, tmp_path):
        own = tmp_path / "own"
        shutil.copytree(kept, own)
        hold_out(unic_cache.open_cache(own), ["000001"])
        train, val, both = (dataset(cache=own, shards=None, split=name) for name in ("train", "val", "all"))
        tars = [{WHERE[key][0] for key in keys_of(found)} for found in (train, val, both)]
        assert tars == [{0, 2}, {1}, {0, 1, 2}]
        assert "not in split train: 000001" in repr(train)
        with pytest.raises(ConfigError, match='all of 000001 are held out of training; give split="val"'):
            dataset(cache=own, shards="000001")
        with pytest.raises(ConfigError, match='none of 000000 is held out of training; give split="train"'):
            dataset(cache=own, shards="000000", split="val")

    def test_without_labels_give_none_and_it_is_said(self, odd, dataset):
        none, mixed = (dataset(cache=odd / "cache", shards=odd / f"{tar}.tar", shuffle=False) for tar in "ba")
        assert "label" not in next(iter(none))
        assert "labels of 0," in repr(none)
        assert next(iter(mixed))["label"].tolist() == [-1 if n % 2 else n % 3 for n in range(12) if n != 7]
        assert "labels of 6," in repr(mixed)


class TestBrokenRows:
    @pytest.fixture
    def folder(self, tmp_path, cache_folder) -> Path:
        shutil.copytree(cache_folder, tmp_path / "cache")
        return tmp_path / "cache"

    def test_stop_the_loop_or_are_left_out_and_counted(self, dataset, folder):
        flip_row(folder, VIT, 0, 5)
        flip_row(folder, VIT, 1, 7)
        with pytest.raises(BrokenError, match=r"rows (5|7): their bytes are not as committed"):
            list(dataset(cache=folder))
        found = dataset(cache=folder, skip_broken=True)
        batches, whole = list(found), list(dataset())
        assert found.broken == 2
        lost = {key for key, (tar, row, _) in WHERE.items() if (tar, row) in {(0, 5), (1, 7)}}
        assert keys_of(batches) == [key for key in keys_of(whole) if key not in lost]
        assert sum(len(batch["image"]) for batch in batches) == 80
        for batch, other in zip(batches, whole, strict=True):
            good = torch.tensor([key not in lost for key in other["key"].tolist()])
            assert torch.equal(batch["image"], other["image"][good])
            assert torch.equal(batch[CNN]["patch"], other[CNN]["patch"][good])

    def test_that_are_a_whole_batch_are_an_error_even_so(self, dataset, folder):
        for row in range(5):
            flip_row(folder, VIT, 2, row)
        found = dataset(cache=folder, skip_broken=True, shards=dataset().shards.replace("*", "000002"))
        with pytest.raises(BrokenError, match="none of a batch's 5 images is as committed; run `unic-cache verify`"):
            list(found)


@pytest.mark.parametrize("scale", ["channel", "phi-s", "none"])
@pytest.mark.parametrize("good", [[True] * 4, [True, False, True, True]])
def test_a_gpu_gets_codes_and_makes_the_rest_without_a_wait(cache, scale, good):
    teachers = [cache.teachers[VIT]]
    parts = {VIT: {array.name: torch.ones(4, *array.row, dtype=torch.float16) for array in teachers[0].arrays}}
    views = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    read = Batch([Address(0, 0, row, 0) for row in range(4)], views, parts, torch.tensor(good))
    with FakeDevice() as fake:
        tokens = GivenTokens(teachers, 0, 2, scale, fake.device)
        given = GivenBatch(
            cache, teachers, tokens, True, prepared(*IMAGENET.values(), 48, 32, True), True, fake.device, False
        )
        for _ in range(2):
            fake.to_device.clear()
            fake.blocking.clear()
            found = given(read)
    assert (fake.to_host, fake.blocking) == ([], [])
    assert all(tensor.device == fake.device for tensor in (found["image"], found["key"], *found[VIT].values()))
    codes = [name for name in fake.to_device if name.startswith("float")]
    assert len(codes) == len(teachers[0].arrays)
    assert found[VIT]["patch"].shape == (sum(good), 2, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is out of bounds"),
        ({"batch_size": 2.5}, "batch_size 2.5 is not a whole number"),
        ({"rank": 0}, "rank and world belong together"),
        ({"rank": 2, "world": 2}, "rank 2 is not one of 0 to 1"),
        ({"teachers": "dino"}, "no teacher 'dino'; it has timm"),
        ({"kinds": "mask"}, "kinds 'mask': no teacher gives such tokens; choose from cls, patch"),
        ({"views": 3}, "views 3, but .* have 2 in common; choose 1 to 2"),
        ({"views": [0, 2]}, "no view 2; .* have the numbers 0, 1 in common"),
        ({"views": []}, r"views \(\) names none"),
        ({"crop_scale": (0.4, 1)}, r"no kinds of views .* crop scale \(0.4, 1\)"),
        ({"recipe": "light"}, r"no kinds of views .* match recipe light.*it has center .*unic"),
        ({"tokens": 9}, "tokens 9, but only 1 tokens|tokens 9, but only 4 tokens"),
        ({"tokens": 1, "kinds": "cls"}, "tokens 1, but the teachers give no patch tokens"),
        ({"standardize": "l2"}, "standardize 'l2' is unknown"),
        ({"split": "test"}, "split 'test' is unknown; choose from train, val, all"),
        ({"img_size": 32}, "give mean and std"),
        ({"mean": (124, 116, 104), "std": (58, 57, 57)}, r"mean \(124, 116, 104\) is not of pixels in \[0, 1\]"),
        ({**IMAGENET, "images": False}, "images is False"),
        ({"mean": "abc", "std": "abc"}, "mean abc is not of pixels"),
        ({"mean": "111", "std": "111"}, "mean 111 is not of pixels"),
        ({"mean": 0.5, "std": 0.5}, r"mean 0\.5 is not of pixels"),
        ({"views": 2.0}, "views 2.0 is not a whole number"),
        ({"views": ["0"]}, "view '0' is not a whole number"),
        ({"teachers": []}, r"teachers \[\] names nothing; give a name or a list of names, or leave teachers out"),
        ({"kinds": 5}, "kinds 5 names nothing"),
        ({"skip_broken": "no"}, "skip_broken 'no' is neither True nor False"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used"),
        ({"cache": "s3:/bucket"}, "did you mean s3://bucket"),
        ({"world": 83, "rank": 0, "batch_size": 1}, "too few"),
    ],
)
def test_what_cannot_be_is_refused_by_name(dataset, changes, message):
    with pytest.raises(UnicCacheError, match=message):
        dataset(**changes)


def test_a_rank_that_torchrun_started_is_not_taken_for_the_only_one(dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"4 processes, but torch.distributed is not initialized"):
        dataset()
    assert dataset(rank=1, world=4, batch_size=4).rank == 1
    for name, value in {"is_initialized": True, "get_rank": 2, "get_world_size": 4}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    found = dataset(batch_size=4)
    assert (found.rank, found.world, len(found)) == (2, 4, 6)


class TestByKey:
    def test_gives_what_a_batch_has(self, dataset, cache):
        batch = next(iter(dataset()))
        key = int(batch["key"][3])
        name = f"image{WHERE[key][2]:05d}"
        for asked in (key, name):
            for view in (0, "unic-32-0-000", None):
                assert equal(cache.features(VIT, asked, view), {kind: x[3] for kind, x in batch[VIT].items()})
        own = next(iter(dataset(standardize="none")))
        assert torch.allclose(cache.features(VIT, key, standardize="none")["cls"], own[VIT]["cls"][3])
        assert set(cache.features(VIT, key, kinds=["cls"])) == {"cls"}

    def test_of_other_views_is_by_number_or_name(self, cache, cache_folder):
        for view, name in ((1, "unic-32-0-001"), ("center-32-0-000", "center-32-0-000")):
            found = cache.features(CNN, key="image00040", view=view)
            assert np.array_equal(found["patch"].numpy(), by_hand(cache_folder, CNN, 1, 3, name)["patch"])

    def test_says_what_is_missing(self, cache):
        for asked, message in (
            (("image99999",), "has no sample 'image99999'"),
            (("image00000", 7), "has views unic-32-0-000, unic-32-0-001; give one of them by its name"),
            (("image00000", "unic-32-1-000"), "has no view unic-32-1-000"),
            ((2**40,), "has no sample"),
        ):
            with pytest.raises(CacheError, match=message):
                cache.features(VIT, *asked)

    def test_needs_the_tar_for_a_key_that_several_have(self, odd):
        cache = unic_cache.open_cache(odd / "cache")
        with pytest.raises(CacheError, match=r"2 samples with the key 'image00003'.*a, row 3; b, row 3; name the tar"):
            cache.features(WIDE, "image00003")
        expected = cache.teachers[WIDE].features(cache.teachers[WIDE].record(cache.unit(0, 1, "unic-32-0-000")), [3])
        assert torch.equal(cache.features(WIDE, "image00003", shard="b")["cls"], expected["cls"][0])

    def test_of_a_bad_image_says_why_there_is_nothing(self, odd):
        with pytest.raises(CacheError, match="row 7, has no features: "):
            unic_cache.open_cache(odd / "cache").features(WIDE, "image00007", shard="a")
