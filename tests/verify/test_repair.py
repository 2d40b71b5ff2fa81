"""A repaired cache equals one that was never broken; whole units are left alone."""

import pytest

from pipelines import repair
from tests.conftest import tree
from tests.verify.damage import CNN_FOLDER, VIEW, VIT_FOLDER, check, flip
from unic_cache.config import RepairConfig
from unic_cache.files.local import LocalFolder


class TestRepair:
    def test_repair_and_extract_give_the_bytes_of_an_undamaged_cache(self, whole, broken, extracting):
        flip(broken / VIT_FOLDER / "features.zarr/000000" / VIEW / "patch/c.0.0.0.0", 100)
        flip(broken / VIT_FOLDER / "features.zarr/000000" / VIEW / "cls/zarr.json", 30)
        (broken / CNN_FOLDER / "features.zarr/zarr.json").unlink()
        (broken / CNN_FOLDER / "features.zarr/000000" / VIEW / "cls/c.1.0.0").unlink()
        flip(broken / CNN_FOLDER / "commits/000000" / VIEW / "000000.json", 50)
        flip(broken / "views/features.zarr/000000" / VIEW / "rgb/c.1.0.0.0.0", 77)
        flip(broken / "probe/unic-32-0.npz", 400)
        (broken / VIT_FOLDER / "commits/000000" / VIEW / "000001.json").unlink()
        flip(broken / VIT_FOLDER / "features.zarr/000000" / VIEW / "patch/c.1.0.0.0", 5)
        before = tree(broken)
        planned = repair.run(RepairConfig(str(broken), dry_run=True, threads=1))
        assert tree(broken) == before
        done = repair.run(RepairConfig(str(broken), threads=1))
        assert (done.done, done.left, done.to_extract) == (planned.done, [], True)
        after = tree(broken)
        assert all(after[name] == whole.joinpath(name).read_bytes() for name in after)
        assert len(done.done) == 8
        assert check(broken).exit_code == 3
        assert repair.run(RepairConfig(str(broken), threads=1)).done == []
        extracting(broken)
        assert check(broken).exit_code == 0
        assert tree(broken) == tree(whole)

    def test_the_record_goes_before_the_data(self, broken, monkeypatch):
        """Killed after its first step, `repair` leaves an incomplete unit, and continues when run again."""
        path = broken / VIT_FOLDER / "features.zarr/000000" / VIEW / "patch/c.0.0.0.0"
        flip(path, 100)
        calls, delete = [], LocalFolder.delete

        def once(location, name):
            if calls:
                raise KeyboardInterrupt
            calls.append(name)
            delete(location, name)

        with monkeypatch.context() as patch:
            patch.setattr(LocalFolder, "delete", once)
            with pytest.raises(KeyboardInterrupt):
                repair.run(RepairConfig(str(broken), threads=1))
        assert calls == [f"{VIT_FOLDER}/commits/000000/{VIEW}/000000.json"]
        assert check(broken).exit_code == 3
        repair.run(RepairConfig(str(broken), threads=1))
        assert not path.exists()

    @pytest.mark.parametrize("name", ["index/000000.json", f"{VIT_FOLDER}/spec.json", f"{VIT_FOLDER}/calibration.npz"])
    def test_what_all_else_depends_on_is_left_and_a_remedy_named(self, broken, name):
        flip(broken / name, len((broken / name).read_bytes()) // 2)
        before = tree(broken)
        done = repair.run(RepairConfig(str(broken), threads=1))
        assert tree(broken) == before
        assert name in done.left[0]
        assert "restore a copy; or remove it and run the command that made it again" in done.left[0]

    def test_a_whole_cache_is_left_alone(self, broken, whole):
        assert repair.run(RepairConfig(str(broken), threads=1)).lines(False) == ["nothing is broken"]
        assert tree(broken) == tree(whole)

    @pytest.mark.parametrize("name", [f"{VIT_FOLDER}/spec.json", f"{VIT_FOLDER}/calibration.npz", "index/000000.json"])
    def test_the_remedy_named_works(self, whole, broken, extracting, name):
        (broken / name).unlink()
        assert check(broken).exit_code == 1
        extracting(broken)
        assert tree(broken) == tree(whole)
