"""A small cache made by an earlier release is read, verified, extended, trained on and recoded."""

import tarfile
from pathlib import Path

import pytest

from pipelines import distill, extract, recode
from tests.conftest import tree
from tests.verify.damage import check
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig, ExtractConfig, RecodeConfig
from unic_cache.files.local import LocalFolder

MEANS = {  # teacher -> view, tar -> mean and mean magnitude of its CLS features, then of its patch features
    "timm:test_vit@32": {
        (0, 0): (-0.00179815, 0.85237519, 0.03707712, 0.81391279),
        (0, 1): (0.00085443, 0.86313035, -0.00507881, 0.80284687),
        (1, 0): (-0.01261822, 0.78452476, 0.01772932, 0.74399412),
        (1, 1): (0.00161876, 0.63226308, 0.00031761, 0.79263217),
    },
    "timm:test_vit2@32": {
        (0, 0): (0.0350949, 0.8677268, 0.01790738, 0.82525762),
        (0, 1): (-0.01764383, 0.76401204, 0.00018236, 0.81407594),
        (1, 0): (0.04478002, 0.80916047, -0.02067812, 0.69142547),
        (1, 1): (0.00181556, 0.80197811, 0.00220496, 0.65739699),
    },
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with `shards` and `cache`, unpacked."""
    with tarfile.open(Path(__file__).parent / "data/earlier-release/cache.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


def means(path: Path) -> dict[str, dict[tuple[int, int], tuple[float, ...]]]:
    cache = open_cache(path)
    found: dict[str, dict[tuple[int, int], tuple[float, ...]]] = {}
    for name, teacher in cache.teachers.items():
        found[name] = {}
        for view, tar in MEANS[name]:
            record = teacher.record(cache.unit(0, tar, f"unic-32-0-{view:03d}"))
            features = [values.double() for values in teacher.features(record, range(3)).values()]
            found[name][view, tar] = tuple(mean for x in features for mean in (x.mean().item(), x.abs().mean().item()))
    return found


def test_it_is_whole_and_reads_as_then(folder):
    report = check(folder / "cache", shards=str(folder / "shards/*.tar"))
    assert (report.state, report.units, report.rows) == ("whole", 12, 36)
    found = means(folder / "cache")
    assert found.keys() == MEANS.keys()
    for name, expected in MEANS.items():
        for place, values in expected.items():
            assert found[name][place] == pytest.approx(values, abs=1e-6), (name, place)


def test_it_takes_another_view_and_nothing_old_changes(folder):
    before = tree(folder / "cache")
    done = extract.run(
        ExtractConfig(
            (), shards=str(folder / "shards/*.tar"), cache=str(folder / "cache"), views=3, size=32, keep_views=True,
            batch_size=4, device="cpu", threads=1,
        )
    )  # fmt: skip
    after = tree(folder / "cache")
    assert done.units == 2
    assert {name: after[name] for name in before} == before
    assert len(LocalFolder(folder / "cache").folders("views/commits/000000")) == 3
    assert check(folder / "cache").exit_code == 0


def test_a_student_trains_on_its_kept_views(folder):
    done = distill.run(
        DistillConfig(
            cache=str(folder / "cache"), out=str(folder / "run"), student="test_vit", img_size=32, patch_size=16,
            steps=2, batch_size=3, tracker="none", threads=1,
        )
    )  # fmt: skip
    assert 0 < done.loss < 10
    assert (folder / "run/encoder.safetensors").is_file()


def test_it_is_recoded(folder):
    before = tree(folder / "cache")
    recode.run(RecodeConfig(str(folder / "cache"), str(folder / "new"), codec="int8", device="cpu", threads=1))
    assert check(folder / "new").exit_code == 0
    assert tree(folder / "cache") == before
    found = means(folder / "new")
    for name, expected in MEANS.items():
        for place, values in expected.items():
            assert found[name][place] == pytest.approx(values, abs=2e-3), (name, place)
