"""Packages land in the work folder, wherever the command is run."""

import sys
from pathlib import Path

import pytest

from benchmarks.study import packages
from benchmarks.study.packages import PACKAGES, Package, fetch

ONE = PACKAGES["mate-backgrounds"]


def write_by_program(package: Package, folder: Path) -> None:
    """As the real fetchers do: a program is run in the folder and given a path of it."""
    script = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('picture')"
    packages._run([sys.executable, "-c", script, str(folder / "picture.png")], package, folder)


def test_a_relative_work_folder_as_make_study_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`study` is the default of --work, and the programs run inside the package's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(packages.FETCHERS, "apt", write_by_program)
    folder = fetch(ONE, Path("study"), lambda line: None)
    assert (tmp_path / "study" / "packages" / ONE.folder / "picture.png").read_text() == "picture"
    assert folder.samefile(tmp_path / "study" / "packages" / ONE.folder)
    assert [path.name for path in folder.parent.iterdir()] == [ONE.folder]
