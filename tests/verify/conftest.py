"""A small cache with files of all kinds, and copies to break."""

import shutil
from pathlib import Path

import pytest

from pipelines import extract
from tests.conftest import CNN, VIT, picture, png, write_tar


@pytest.fixture(scope="session")
def tars(tmp_path_factory) -> Path:
    """Two tars of 35 and 5 images, one of them not an image."""
    folder = tmp_path_factory.mktemp("tars")
    samples = [(f"image{n:05d}", png(picture(n)), n % 3) for n in range(40)]
    samples[3] = ("image00003", b"no image at all", 0)
    write_tar(folder / "000000.tar", samples[:35])
    write_tar(folder / "000001.tar", samples[35:])
    return folder


@pytest.fixture(scope="session")
def extracting(settings, tars):
    """The runs of `extract` that make or repair the small cache: two teachers and the pixels."""

    def run(folder: Path) -> None:
        common = {"shards": str(tars / "*.tar"), "views": 1, "calibration_images": 20, "threads": 1}
        weights = dict(settings(folder).weights)
        extract.run(
            settings(folder, teachers=(VIT,), weights=((VIT, weights[VIT]),), codec="int8", keep_views=True, **common)
        )
        extract.run(settings(folder, teachers=(CNN,), weights=((CNN, weights[CNN]),), **common))

    return run


@pytest.fixture(scope="session")
def whole(tmp_path_factory, extracting) -> Path:
    """A whole small cache, read-only."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    extracting(folder)
    return folder


@pytest.fixture
def broken(tmp_path, whole) -> Path:
    """A copy to break."""
    shutil.copytree(whole, tmp_path / "cache")
    return tmp_path / "cache"
