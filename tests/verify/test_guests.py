"""Every command leaves guest folders in a cache alone, and prints which."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from pipelines import extract, repair
from tests.conftest import CNN, VIT, make_shards, tree
from tests.verify.damage import CNN_FOLDER, VIEW, VIT_FOLDER, check, flip
from unic_cache.cache import open_cache
from unic_cache.config import RepairConfig
from unic_cache.files.local import LocalFolder
from unic_cache.files.schemes import open_location
from unic_cache.store.foreign_folders import sort_folders


def renamed(cache: Path) -> str:
    shutil.copytree(cache / VIT_FOLDER, cache / "zz-old")
    return "zz-old"


def copied(cache: Path) -> str:
    shutil.copytree(cache / VIT_FOLDER, cache / f"{VIT_FOLDER} (copy)")
    return f"{VIT_FOLDER} (copy)"


def backed_up_without_its_spec(cache: Path) -> str:
    shutil.copytree(cache / VIT_FOLDER, cache / f"{VIT_FOLDER}.bak")
    (cache / f"{VIT_FOLDER}.bak/spec.json").unlink()
    return f"{VIT_FOLDER}.bak"


def copied_half(cache: Path) -> str:
    shutil.copytree(cache / VIT_FOLDER, cache / f"{VIT_FOLDER}.bak")
    path = cache / f"{VIT_FOLDER}.bak/spec.json"
    path.write_bytes(path.read_bytes()[:300])
    (cache / f"{VIT_FOLDER}.bak/features.zarr/000000/{VIEW}/patch/c.0.0.0.0").unlink()
    return f"{VIT_FOLDER}.bak"


def pixels_put_aside(cache: Path) -> str:
    shutil.copytree(cache / "views", cache / "views.old")
    return "views.old"


def notes(cache: Path) -> str:
    (cache / "notes/commits/000000").mkdir(parents=True)
    (cache / "notes/commits/000000/x.json").write_text("[1, 2")
    (cache / "notes/spec.json").write_text('{"name": "somebody else\'s"}')
    return "notes"


def another_cache(cache: Path) -> str:
    shutil.copytree(cache, cache.parent / "copy")
    shutil.move(cache.parent / "copy", cache / "nested")
    (cache / "nested" / VIT_FOLDER / ".tmp-0-live").write_bytes(b"being written by somebody")
    return "nested"


def of_the_file_system(cache: Path) -> str:
    for name in ("lost+found", "@eaDir", ".snapshot", "#recycle"):
        (cache / name / "deep").mkdir(parents=True)
        (cache / name / "deep/file").write_bytes(b"x")
    (cache / ".DS_Store").write_bytes(b"x")
    return "lost+found"


GUESTS = [
    renamed,
    copied,
    backed_up_without_its_spec,
    copied_half,
    pixels_put_aside,
    notes,
    another_cache,
    of_the_file_system,
]


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.__name__)
def test_a_guest_is_left_alone_by_all_that_keeps_a_cache(broken, whole, extracting, run, guest):
    name = guest(broken)
    before = tree(broken)
    for command in ("inspect", "verify", "repair"):
        done = run(command, broken)
        assert done.exit_code == 0, (command, done.output)
        assert name in done.output, command
    extracting(broken)
    assert list(open_cache(broken).teachers) == list(open_cache(whole).teachers)
    assert check(broken).guests.keys() == sort_folders(open_location(broken))[1].keys()
    assert tree(broken) == before


def test_a_guest_that_may_not_be_listed_stops_nothing(broken, monkeypatch):
    of_the_file_system(broken)
    real = LocalFolder._walk

    def walk(location, prefix, without):
        assert {"lost+found", "@eaDir"} <= set(without) or prefix, "it would be walked into"
        return real(location, prefix, without)

    monkeypatch.setattr(LocalFolder, "_walk", walk)
    assert check(broken).exit_code == 0
    assert repair.run(RepairConfig(str(broken), threads=1)).done == []


def test_a_folder_behind_a_link_is_the_caches_own_and_so_are_its_parts(broken, whole, tmp_path):
    for name in (f"{CNN_FOLDER}/features.zarr", f"{CNN_FOLDER}/commits", VIT_FOLDER):
        (tmp_path / "disk" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(broken / name, tmp_path / "disk" / name)
        (broken / name).symlink_to(tmp_path / "disk" / name)
    (broken / CNN_FOLDER / "commits/back").symlink_to(broken)  # and a link that leads back is no second copy
    report = check(broken)
    assert (report.exit_code, report.units, report.missing, report.guests) == (0, 6, [], {})
    flip(tmp_path / "disk" / VIT_FOLDER / "commits/000000" / VIEW / "000000.json", 50)
    assert [finding.member for finding in check(broken).broken] == [VIT_FOLDER]


def test_a_teacher_whose_spec_is_lost_is_no_guest(broken):
    (broken / VIT_FOLDER / "spec.json").unlink()
    report = check(broken)
    assert (report.exit_code, report.guests) == (1, {})
    assert open_cache(broken).lost == [VIT_FOLDER]


def test_training_is_refused_where_a_spec_is_lost_rather_than_done_without_that_teacher(broken, training, run):
    (broken / VIT_FOLDER / "spec.json").unlink()
    done = run("distill", "--cache", broken, "--out", broken.parent / "run", "--student", "test_vit", "--img-size", 32)
    assert done.exit_code == 1
    assert f"{VIT_FOLDER}/spec.json is missing" in done.output


class TestRepairRemovesNothingThatIsWhole:
    """`verify` reports each, and `repair` changes no byte of the cache."""

    @pytest.fixture
    def other(self, tmp_path, settings, weights):
        """A cache of other tars: the first has the same name and number of rows, the second does not."""
        shards = make_shards(tmp_path / "others", (35, 9, 40), first=200)
        config = settings(
            tmp_path / "other",
            teachers=(VIT,),
            weights=((VIT, str(weights[VIT])),),
            shards=shards.pattern,
            views=1,
            codec="int8",
            calibration_images=20,
        )
        extract.run(config)
        return tmp_path / "other"

    def left(self, cache: Path, telling: str) -> None:
        before = tree(cache)
        done = repair.run(RepairConfig(str(cache), threads=1))
        assert done.done == []
        assert telling in "\n".join(done.left), done.left
        assert tree(cache) == before

    def test_a_teachers_folder_of_other_tars(self, broken, other):
        shutil.rmtree(broken / VIT_FOLDER)
        shutil.copytree(other / VIT_FOLDER, broken / VIT_FOLDER)
        self.left(broken, f"{VIT_FOLDER}/ was copied from a cache of other tars, or index/ was")

    def test_the_index_of_another_cache(self, broken, other):
        shutil.copy(other / "index/000000.json", broken / "index/000000.json")
        self.left(broken, "restore the right index")

    def test_records_that_were_all_lost(self, broken):
        shutil.rmtree(broken / CNN_FOLDER / "commits")
        self.left(broken, f"was {CNN_FOLDER}/commits lost, or not copied yet?")

    def test_the_calibration_of_another_cache(self, broken, other):
        shutil.copy(other / VIT_FOLDER / "calibration.npz", broken / VIT_FOLDER / "calibration.npz")
        self.left(broken, "restore that one")

    def test_what_lies_beside_the_units(self, broken):
        shutil.copytree(broken / VIT_FOLDER / "commits/000000" / VIEW, broken / VIT_FOLDER / "commits/000000/mine")
        shutil.copytree(broken / VIT_FOLDER / "commits/000000", broken / VIT_FOLDER / "commits/000009")
        (broken / "index/000000.json.bak").write_text("{}")
        (broken / "probe/mine.npz").write_bytes(b"x")
        before = tree(broken)
        done = repair.run(RepairConfig(str(broken), threads=1))
        assert tree(broken) == before, done.done


def test_verify_tells_programs_what_was_left_alone(broken, run):
    renamed(broken)
    report = json.loads(run("verify", broken, "--json").stdout)
    assert report["left_alone"] == {"zz-old": f"its spec.json names {VIT}"}
    assert (report["state"], report["foreign"]) == ("whole", ["zz-old/"])


def test_two_teachers_of_one_cache_stay_two(broken):
    own, guests = sort_folders(open_location(broken))
    assert (own, guests) == ([CNN_FOLDER, VIT_FOLDER, "views"], {})
    assert set(open_cache(broken).teachers) == {VIT, CNN}
